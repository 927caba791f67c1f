"""Pictures of the documentation that are drawn from results alone."""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import pruning
from benchmarks.pages.blocks import RESULTS, ROOT

LINES = {"acc1": ("ACC1", "#1b7f5c"), "acc2": ("ACC2", "#2b5fa8"), "acc3": ("ACC3", "#b5452c")}


def draw_sweeps(results: Any, path: Path) -> None:
    """Lambda on the left, filters per class on the right."""
    sweeps = results["sections"]["sweeps"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_lines(left, sweeps["lambda"], "lambda")
    draw_lines(right, sweeps["filters per class"], "filters per class of a new layer (dashed: STD)")
    right.set_xscale("log", base=2)
    values = sorted({row["value"] for row in sweeps["filters per class"]})
    right.set_xticks(values, [f"{value:g}" for value in values])
    figure.savefig(path, metadata={"Date": None})


def draw_lines(axes: Axes, rows: list[dict[str, Any]], label: str) -> None:
    """Accuracies on the left scale, MIS over its ceiling on the right one."""
    for masks, style in (("bernoulli", "-"), ("std", "--")):
        own = [row for row in rows if row["trained by"] == masks]
        if not own:
            continue
        values = [row["value"] for row in own]
        for name, (shown, colour) in LINES.items():
            axes.plot(
                values,
                [row[name] for row in own],
                style,
                color=colour,
                marker="o",
                label=shown if masks != "std" else None,
            )
            if masks != "std":
                axes.fill_between(
                    values, [row[f"{name} interval"][0] for row in own], [row[f"{name} interval"][1] for row in own],
                    color=colour, alpha=0.12, linewidth=0,
                )  # fmt: skip
        axes.plot(
            values,
            [100 * row["mis"] for row in own],
            style,
            color="#555555",
            marker="s",
            label="100 x MIS" if masks != "std" else None,
        )
    axes.set_xlabel(label)
    axes.set_ylabel("percent, 100 x nats")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


PICTURES: Mapping[str, tuple[str, Callable[[Any, Path], None]]] = {
    "docs/benchmarks/pruning.svg": ("pruning.json", lambda results, path: pruning.draw(results["rows"], path)),
    "docs/benchmarks/picnn-sweeps.svg": ("picnn.json", draw_sweeps),
}


def drawn(name: str, results: Path = RESULTS) -> str:
    """A picture drawn from its results, as SVG."""
    file, draw = PICTURES[name]
    content = json.loads((results / file).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context({"svg.hashsalt": "secateur"}):
        path = Path(folder) / "picture.svg"
        draw(content, path)
        return path.read_text(encoding="utf-8")


def differing(results: Path = RESULTS, root: Path = ROOT) -> list[str]:
    """The pictures that differ from their results, without those that another version of matplotlib drew."""
    found = []
    for name in PICTURES:
        path = root / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        drawn_by = re.search(r"Matplotlib v([\d.]+)", text)
        if drawn_by and drawn_by[1].rstrip(".") != matplotlib.__version__:
            continue
        if drawn(name, results) != text:
            found.append(name)
    return found
