"""One result in several forms: JSON, Markdown, a page, JUnit, a model card, and figures for github-action-benchmark."""

import functools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.files import read_json, replacing, write_json, write_text
from ..measure.accuracy import MEASURES
from .benchmark_json import bigger_is_better, smaller_is_better
from .charts.front import COSTS, front_plot
from .charts.search_curve import in_points, search_curve
from .model_card import card_view
from .page_view import headings, page_view
from .wording import count, figure, in_bytes, markdown_cell, markdown_line, milliseconds, points, share, times

SCHEMA_VERSION = 1
MARKDOWN_BYTES = 60_000
"""A pull request's comment takes 65,536 characters; a report stays below this many bytes."""
REPORT_FILES = (
    "report.json", "report.md", "report.html", "junit.xml", "model-card.md", "benchmark-smaller.json", "benchmark-bigger.json",
)  # fmt: skip
Report = Mapping[str, Any]
"""The content of ``report.json``; its form is ``templates/report.schema.json``."""

BY_RECIPE = "secateur prune-and-export --recipe recipe.toml --out secateur-run"
"""Makes any run again: its resolved recipe lies in the run folder."""


def schema() -> dict[str, Any]:
    """The JSON schema of a report."""
    text = resources.files(__package__).joinpath("templates", "report.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def write_report(report: Report, folder: Path, command: str = BY_RECIPE) -> dict[str, Path]:
    """Write all forms of a report into ``folder`` and return their paths by file name.

    Args:
        command: the command that makes the run again.
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


def read_report(path: Path) -> dict[str, Any]:
    """Read ``report.json`` (or the one in a folder).

    Raises:
        InputError: missing, not JSON, or of another schema version.
    """
    path = path / "report.json" if path.is_dir() else path
    report = read_json(path)
    if not isinstance(report, dict) or report.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} is no report of schema version {SCHEMA_VERSION}. Run `secateur prune-and-export` again."
        )
    return report


def to_markdown(report: Report, command: str = BY_RECIPE) -> str:
    """The report for a pull request or a step summary, below ``MARKDOWN_BYTES``.

    Long tables are cut, each with a line that says how much was left out and where it is.
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
    """The card of ``model.onnx``: README.md in Hugging Face's form."""
    view = {**_view(report, command), **card_view(report)}
    return str(templates().get_template("model-card.md.jinja").render(**view))


def to_html(report: Report, command: str = BY_RECIPE) -> str:
    """One self-contained page; names from the user's data are escaped."""
    return str(templates().get_template("report.html.jinja").render(**_view(report, command)))


def to_junit(report: Report) -> "ElementTree.ElementTree[ElementTree.Element]":
    """Every gate as a test case; what failed or was not measured is a failure."""
    gates = report["gates"]
    failed = [gate for gate in gates if gate["verdict"] != "pass"]
    suite = ElementTree.Element(
        "testsuite",
        name="secateur",
        tests=str(len(gates)),
        failures=str(len(failed)),
        errors="0",
        time=f"{sum(report['timings_s'].values()):.3f}",
    )
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname="secateur.gates", name=gate["name"])
        if gate["verdict"] != "pass":
            message = f"{gate['verdict']}: {gate['value']} against {gate['limit']} ({gate['meaning']})"
            ElementTree.SubElement(case, "failure", message=message)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def closing_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The before/after table: (what, baseline, pruned, change with its interval)."""
    before, after, ratios, drop = report["baseline"], report["pruned"], report["ratios"], report["drop"]
    rows = [
        (
            MEASURES[report["accuracy_against"]],
            share(before["accuracy"]),
            share(after["accuracy"]),
            f"{points(drop['points'])} points ({points(drop['high'])} to {points(drop['low'])})",
        ),
        ("MACs", count(before["macs"]), count(after["macs"]), times(ratios["macs"], "fewer")),
        (
            "parameters",
            count(before["parameters"]),
            count(after["parameters"]),
            times(ratios["parameters"], "fewer"),
        ),
        (
            "ONNX file",
            in_bytes(before["onnx_bytes"]),
            in_bytes(after["onnx_bytes"]),
            times(ratios["onnx_bytes"], "smaller"),
        ),
    ]
    for batch, ratio in ratios["latency"].items():
        rows.append(
            (
                f"latency, batch {batch}",
                milliseconds(before["latency"][batch]["median_ms"]),
                milliseconds(after["latency"][batch]["median_ms"]),
                f"{ratio['ratio']:.2f}x speed ({ratio['low']:.2f} to {ratio['high']:.2f})",
            )
        )
    return rows


def release_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The run against the last release: (what, release, this run, change); empty where there was none."""
    release = report.get("release")
    if not release:
        return []
    now, drop, slower = report["pruned"], release["drop"], release["latency"]
    rows = [
        (
            MEASURES[report["accuracy_against"]],
            share(release["accuracy"]),
            share(now["accuracy"]),
            f"{points(drop['points'])} points ({points(drop['high'])} to {points(drop['low'])})",
        ),
        ("MACs", count(release["macs"]), count(now["macs"]), f"{release['macs_percent']:+.2f}%"),
        ("ONNX file", in_bytes(release["onnx_bytes"]), in_bytes(now["onnx_bytes"]), f"{release['size_percent']:+.2f}%"),
    ]
    if slower:
        change = (
            f"{slower['percent']:+.1f}% ({slower['low']:+.1f} to {slower['high']:+.1f}), noise {slower['noise']:.1f}%"
        )
        rows.append((f"time, batch {slower['batch']}", "", "", change))
    return rows


def pathway_rows(pathways: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table of PICNN's measures: (network, ACC1, ACC2, ACC3, MIS), each with its interval."""
    return [
        (
            f"{row['state']}, P {row['membership']}",
            *(
                f"{share(row[name]['value'])} ({100 * row[name]['low']:.1f} to {100 * row[name]['high']:.1f})"
                for name in ("acc1", "acc2", "acc3")
            ),
            f"{row['mis']:.3f} ({row['mis_interval']['low']:.3f} to {row['mis_interval']['high']:.3f})",
            f"{row['mis_floor']:.3f}",
        )
        for row in pathways
    ]


def variant_cells(report: Report) -> list[tuple[str, ...]]:
    """The table of precisions: (file, bytes, agreement with torch, accuracy, drop, speed at the gate's batch size, memory)."""
    rows: list[tuple[str, ...]] = []
    for row in report.get("variants") or ():
        drop, parity, memory = row["drop"], row["parity"], row["peak_memory_bytes"]
        speed = row["speedup"].get(str(report["recipe"].get("measurement", {}).get("latency_batch", 1)))
        rows.append(
            (
                row["file"],
                in_bytes(row["onnx_bytes"]),
                f"{share(parity['top1_agreement'])} ({parity['max_relative_difference']:.1e})",
                share(row["accuracy"]),
                f"{drop['points']:.2f} ({drop['low']:.2f} to {drop['high']:.2f})" if drop else "–",
                f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "–",
                "–" if memory is None else in_bytes(memory),
            )
        )
    return rows


def headline(report: Report) -> str:
    """How far the network was cut, in what its budget was given in, and in how many rounds."""
    search, rounds, budget = report["search"], len(report["rounds"]), report["recipe"]["budget"]
    several = f" in {rounds} rounds" if rounds > 1 else ""
    if search is None:
        resource = next((name for name in _RESOURCES if name in budget), "macs")
        left = next(gate["value"] for gate in report["gates"] if gate["name"] == "budget")
        where = f" at batch {report['latency_budget']['batch']}" if resource == "latency" else ""
        return f"cut to {100 * left:.1f}% of the {_RESOURCES[resource]}{where}{several}"
    limit = in_points(search["max_drop"])
    if search["chosen"] is None:
        return f"not cut, as no try lost at most {limit} on validation images"
    left = 100 / report["ratios"]["macs"]
    return f"cut to {left:.1f}% of the MACs{several}, the least that was found to lose at most {limit} on validation images"


_RESOURCES = {"macs": "MACs", "params": "parameters", "size": "bytes of weights", "latency": "latency"}


def _steps(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The repair steps of all rounds in order, each with a title that names its round if there are several."""
    return [
        {**step, "title": f"round {number}: {step['name']}" if len(rounds) > 1 else step["name"]}
        for number, one in enumerate(rounds, 1)
        for step in one["steps"]
    ]


def _view(report: Report, command: str) -> dict[str, Any]:
    """What the templates are given besides the report: headline, tables, curves and charts."""
    from markupsafe import Markup

    return {
        "report": report,
        "headline": headline(report),
        "rows": closing_rows(report),
        "release_rows": release_rows(report),
        "measure": MEASURES[report["accuracy_against"]],
        "agreement": report["accuracy_against"] == "original",
        "curve": Markup(search_curve(report["search"])) if report["search"] else "",
        "steps": _steps(report["rounds"]),
        "variants": variant_cells(report),
        "candidates": report.get("candidates") or (),
        "fronts": {
            name: [row["name"] for row in report.get("candidates") or () if row["on_front"][name]] for name in COSTS
        },
        "front_plots": [Markup(front_plot(report["candidates"], name)) for name in COSTS if report.get("candidates")],
        "pathways": pathway_rows(report.get("pathways") or ()),
        "passed": all(gate["verdict"] == "pass" for gate in report["gates"]),
        "total_s": sum(report["timings_s"].values()),
        **page_view(report, command),
    }


@functools.cache
def templates() -> Any:
    """What the pages are rendered in: names are escaped in HTML, and a missing value is an error."""
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
