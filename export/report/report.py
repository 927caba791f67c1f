"""Write a report in all its formats: JSON, Markdown, HTML, JUnit, a model card, and figures for github-action-benchmark."""

from pathlib import Path

from ...common.files import replacing, write_json, write_text
from .benchmark_json import bigger_is_better, smaller_is_better
from .content import Report
from .junit import to_junit
from .rendering import BY_RECIPE, to_html, to_markdown, to_model_card

REPORT_FILES = (
    "report.json", "report.md", "report.html", "junit.xml", "model-card.md", "benchmark-smaller.json", "benchmark-bigger.json",
)  # fmt: skip


def write_report(report: Report, folder: Path, command: str = BY_RECIPE) -> dict[str, Path]:
    """Write a report in all its formats into ``folder``, and return the paths by file name.

    Args:
        command: the command that repeats the run.
    """
    paths = {name: folder / name for name in REPORT_FILES}
    write_json(paths["report.json"], dict(report))
    write_text(paths["report.md"], to_markdown(report, command))
    write_text(paths["report.html"], to_html(report, command))
    write_text(paths["model-card.md"], to_model_card(report, command))
    write_json(paths["benchmark-smaller.json"], smaller_is_better(report))
    write_json(paths["benchmark-bigger.json"], bigger_is_better(report))
    with replacing(paths["junit.xml"]) as temporary:
        to_junit(report).write(temporary, encoding="utf-8", xml_declaration=True)
    return paths
