"""``secateur report``: write the pages of a report again, or compare two reports."""

from pathlib import Path
from typing import Annotated

import typer

from .app import command, console_of


@command("report")
def report_command(
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder; with --compare the folder for the comparison.", show_default="secateur-run"),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Two run folders or report.json files to compare."),
    ] = None,
) -> None:
    """Write all files that are generated from report.json again; or compare two reports, printed and, with --out, as files."""
    from ..export.report.content import read_report
    from ..export.report.report import write_report
    from ..pipeline.recipe.rerun_command import command_of

    console = console_of()
    if compare is None:
        folder = out or Path("secateur-run")
        report = read_report(folder)
        paths = write_report(report, folder, command_of(report["recipe"]))
        console.print(f"report: {paths['report.html']}", soft_wrap=True, highlight=False)
        return
    from ..export.report.compare import compare_reports, write_comparison
    from .terminal import show_table

    first, second = compare
    found = compare_reports(read_report(first), read_report(second), (str(first), str(second)))
    for alarm in found.alarms:
        typer.echo(f"secateur: {alarm}", err=True)
    show_table(console, ("", "first", "second", "change (95% CI)"), found.rows)
    for title, rows in (("gates", found.gates), ("recipe", found.recipes), ("environment", found.environments)):
        if rows:
            show_table(console, ("", "first", "second"), rows, title)
    if out is not None:
        for path in write_comparison(found, out):
            console.print(f"comparison: {path}", soft_wrap=True, highlight=False)
