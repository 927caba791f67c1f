"""A report as Markdown, as a page and as a model card."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.accuracy import MEASURES
from .charts.front import COSTS, front_plot
from .charts.search_curve import in_points, search_curve
from .content import Report
from .gates import BEST_EFFORT, held
from .model_card import card_view
from .page_view import headings, page_view
from .tables import (
    closing_rows,
    fused_files,
    headline,
    lock_rows,
    lowest_budgets,
    pathway_rows,
    release_rows,
    torch_rows,
    variant_cells,
)
from .wording import count, figure, in_bytes, markdown_cell, markdown_line, milliseconds, points, share

MARKDOWN_BYTES = 60_000
"""A comment on a pull request is limited to 65,536 characters; a report stays below this many bytes."""

BY_RECIPE = "secateur prune-and-export --recipe recipe.toml --out secateur-run"
"""Repeats any run, since its resolved recipe is in the run folder."""


def to_markdown(report: Report, command: str = BY_RECIPE) -> str:
    """The report for a pull request or a step summary, below ``MARKDOWN_BYTES``.

    Long tables are truncated, with a line that says how much was left out and where to find it.
    """
    view, template = _view(report, command), templates().get_template("report.md.jinja")
    text = ""
    for most in (150, 60, 25, 10, 3):
        text = str(template.render(**view, most=most))
        if len(text.encode()) < MARKDOWN_BYTES:
            break
    else:
        end = "\n\nThe rest is in report.html.\n"
        text = text.encode()[: MARKDOWN_BYTES - 100].decode(errors="ignore").rpartition("\n")[0] + end
    return text


def to_model_card(report: Report, command: str = BY_RECIPE) -> str:
    """The card of ``model.onnx``: README.md in Hugging Face's format."""
    view = {**_view(report, command), **card_view(report)}
    return str(templates().get_template("model-card.md.jinja").render(**view))


def to_html(report: Report, command: str = BY_RECIPE) -> str:
    """One self-contained page; names from the user's data are escaped."""
    return str(templates().get_template("report.html.jinja").render(**_view(report, command)))


def _steps(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The repair steps of all rounds in order, each with a title that includes its round if there are several."""
    return [
        {**step, "title": f"round {number}: {step['name']}" if len(rounds) > 1 else step["name"]}
        for number, one in enumerate(rounds, 1)
        for step in one["steps"]
    ]


def _view(report: Report, command: str) -> dict[str, Any]:
    """The variables of the templates besides the report: headline, tables, curves and charts."""
    from markupsafe import Markup

    return {
        "report": report,
        "headline": headline(report),
        "rows": closing_rows(report),
        "release_rows": release_rows(report),
        "measure": MEASURES[report["accuracy_against"]],
        "agreement": report["accuracy_against"] == "original",
        "curve": Markup(search_curve(report["search"])) if report["search"] else "",
        "lock_rows": lock_rows(report),
        "lowest_budgets": lowest_budgets(report),
        "best_effort": [gate for gate in report["gates"] if gate["verdict"] == BEST_EFFORT],
        "steps": _steps(report["rounds"]),
        "variants": variant_cells(report),
        "torch_rows": torch_rows(report),
        "fused": fused_files(report),
        "candidates": report.get("candidates") or (),
        "fronts": {
            name: [row["name"] for row in report.get("candidates") or () if row["on_front"][name]] for name in COSTS
        },
        "front_plots": [Markup(front_plot(report["candidates"], name)) for name in COSTS if report.get("candidates")],
        "pathways": pathway_rows(report.get("pathways") or ()),
        "passed": all(held(gate["verdict"]) for gate in report["gates"]),
        "total_s": sum(report["timings_s"].values()),
        **page_view(report, command),
    }


@functools.cache
def templates() -> Any:
    """The template environment: names are escaped in HTML, and a missing value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader(__package__, "templates")
    environment = Environment(
        loader=loader,
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        share=share,
        points=points,
        count=count,
        milliseconds=milliseconds,
        bytes=in_bytes,
        cell=markdown_cell,
        line=markdown_line,
        value=figure,
        limit=in_points,
        headings=headings,
    )
    return environment
