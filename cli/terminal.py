"""Terminal output: a line per stage, a progress bar for long stages, tables and trees."""

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.tree import Tree

from ..common.progress import Observer
from ..common.progress import Progress as Report

if TYPE_CHECKING:
    from ..explain.evidence.tree import EvidenceTree
    from ..pipeline.dry_run import DryRun


FIGURE = re.compile(r"[-+–~]?[\d.,]*\d|[-–]$|not measured")
"""The beginning of a cell with a figure, or with a placeholder for one."""
BAR_AFTER_SECONDS = 2.0
LOG_EVERY_SECONDS = 20.0
"""Seconds between two lines on the progress of a long stage without a terminal, as in CI."""


class TerminalObserver(Observer):
    """Prints to a console; with ``quiet``, only important messages."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"  [dim]{escape(text)}[/dim]", highlight=False)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        start = said = time.perf_counter()
        bar: Progress | None = None
        task = None

        def report(done: int, total: int) -> None:
            nonlocal bar, task, said
            now = time.perf_counter()
            if not self.quiet and not self.console.is_terminal and now - said >= LOG_EVERY_SECONDS and total:
                said = now
                self.console.print(f"  {name:<12} {now - start:7.1f} s, {100 * done // total}% done", highlight=False)
            if self.quiet or not self.console.is_terminal or now - start < BAR_AFTER_SECONDS:
                return
            if bar is None:
                columns = (TextColumn("  {task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
                bar = Progress(*columns, console=self.console, transient=True)
                bar.start()
                task = bar.add_task(name, total=total)
            assert task is not None
            bar.update(task, completed=done, total=total)

        try:
            yield report
        finally:
            if bar is not None:
                bar.stop()
        if not self.quiet:
            self.console.print(f"[green]✓[/green] {name:<12} {time.perf_counter() - start:7.1f} s", highlight=False)

    def skipped(self, name: str) -> None:
        if not self.quiet:
            self.console.print(f"[green]✓[/green] {name:<12}        from the previous run", highlight=False)


def show_table(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None
) -> None:
    """A plain table: columns of figures are aligned to the right, columns of text to the left."""
    table = Table(title=title, title_justify="left", highlight=False)
    for index, name in enumerate(header):
        figures = index > 0 and all(FIGURE.match(row[index]) for row in rows if row[index])
        table.add_column(name, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def show_tree(console: Console, tree: "EvidenceTree") -> None:
    """Print the evidence for a decision as a tree, and the effect of covering regions."""
    decided = f"{tree.picture}: {tree.predicted} ({100 * tree.probability:.1f}%)"
    title = f"{decided}. Evidence for {tree.decision} ({tree.value:.3g}):"
    root = Tree(escape(title), highlight=False)
    branches = [root]
    for depth, found in tree.walk():
        same = f", as are {', '.join(map(str, found.merged))}" if found.merged else ""
        text = (
            f"{found.layer} kernel {found.kernel} at row {found.row}, column {found.column}: "
            f"{100 * found.share:.1f}% (alpha {found.alpha:.3g}){same}"
        )
        del branches[depth + 1 :]
        branches.append(branches[depth].add(escape(text)))
    console.print(root)
    for occlusion in tree.occlusions:
        effect, names = occlusion.effect, tree.class_names
        text = (
            f"covered {occlusion.why} ({100 * effect.covered:.0f}% of the image): {names[effect.label]} "
            f"{100 * effect.probability_before:.1f}% -> {100 * effect.probability_after:.1f}%, "
            f"predicted {names[effect.predicted_after]}"
        )
        console.print(f"  {escape(text)}", highlight=False, soft_wrap=True)


PATHWAY_COLUMNS = ("network", "ACC1, % (95% CI)", "ACC2, % (95% CI)", "ACC3, % (95% CI)", "MIS (95% CI)", "floor")


def show_pathways(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Print PICNN's measures in a narrow table, if there are any."""
    if rows:
        narrow = [tuple(cell.replace("% (", " (").replace(" to ", "–") for cell in row) for row in rows]
        show_table(console, PATHWAY_COLUMNS, narrow)


def show_dry_run(console: Console, found: "DryRun") -> None:
    """Print what a run would prune, and its estimated time and memory."""
    from ..pipeline.locks import in_words

    show_table(console, ("", "found"), found.inputs)
    rows = [
        (
            row.name,
            str(len(row.layers)),
            str(row.units),
            str(row.step),
            f"{100 * row.macs_share:.1f}%",
            f"{100 * row.params_share:.1f}%",
            row.locked,
        )
        for row in found.groups
    ]
    show_table(console, ("group", "layers", "units", "step", "MACs", "parameters", "locked because"), rows)
    seconds = [(name, "not estimated" if value is None else _duration(value)) for name, value in found.seconds]
    show_table(console, ("stage", "time, roughly"), [*seconds, ("total", f"{_duration(found.total_seconds)}")])
    for line in (
        f"budget: {found.budget}",
        *in_words(found.locks),
        f"memory: about {found.memory_bytes / 2**30:.1f} GiB",
        "Nothing was written.",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
