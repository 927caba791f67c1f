"""One result, four forms: report.json, report.md, report.html and junit.xml."""

import functools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json, replacing, write_json, write_text
from .accuracy import MEASURES
from .curves import in_points, search_curve
from .fronts import COSTS, front_plot

SCHEMA_VERSION = 1
REPORT_FILES = ("report.json", "report.md", "report.html", "junit.xml")
Report = Mapping[str, Any]
"""The content of ``report.json``; its form is ``report.schema.json`` beside this module."""


def schema() -> dict[str, Any]:
    """The JSON schema of a report."""
    text = resources.files(__package__).joinpath("report.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def write_report(report: Report, folder: Path) -> dict[str, Path]:
    """Write all four forms of a report into ``folder``; by file name where they lie."""
    paths = {name: folder / name for name in REPORT_FILES}
    write_json(paths["report.json"], dict(report))
    write_text(paths["report.md"], to_markdown(report))
    write_text(paths["report.html"], to_html(report))
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


def to_markdown(report: Report) -> str:
    """The report for a pull request or a step summary."""
    return str(_templates().get_template("report.md.jinja").render(**_view(report)))


def to_html(report: Report) -> str:
    """One self-contained page; names from the user's data are escaped."""
    return str(_templates().get_template("report.html.jinja").render(**_view(report)))


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
            _share(before["accuracy"]),
            _share(after["accuracy"]),
            f"{_points(drop['points'])} points ({_points(drop['high'])} to {_points(drop['low'])})",
        ),
        ("MACs", _count(before["macs"]), _count(after["macs"]), _times(ratios["macs"], "fewer")),
        (
            "parameters",
            _count(before["parameters"]),
            _count(after["parameters"]),
            _times(ratios["parameters"], "fewer"),
        ),
        (
            "ONNX file",
            _bytes(before["onnx_bytes"]),
            _bytes(after["onnx_bytes"]),
            _times(ratios["onnx_bytes"], "smaller"),
        ),
    ]
    for batch, ratio in ratios["latency"].items():
        rows.append(
            (
                f"latency, batch {batch}",
                _milliseconds(before["latency"][batch]["median_ms"]),
                _milliseconds(after["latency"][batch]["median_ms"]),
                f"{ratio['ratio']:.2f}x speed ({ratio['low']:.2f} to {ratio['high']:.2f})",
            )
        )
    return rows


def pathway_rows(pathways: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table of PICNN's measures: (network, ACC1, ACC2, ACC3, MIS), each with its interval."""
    return [
        (
            f"{row['state']}, P {row['membership']}",
            *(
                f"{_share(row[name]['value'])} ({100 * row[name]['low']:.1f} to {100 * row[name]['high']:.1f})"
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
                _bytes(row["onnx_bytes"]),
                f"{_share(parity['top1_agreement'])} ({parity['max_relative_difference']:.1e})",
                _share(row["accuracy"]),
                f"{drop['points']:.2f} ({drop['low']:.2f} to {drop['high']:.2f})" if drop else "–",
                f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})" if speed else "–",
                "–" if memory is None else _bytes(memory),
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
        return f"cut to {100 * left:.1f}% of the {_RESOURCES[resource]}{several}"
    limit = in_points(search["max_drop"])
    if search["chosen"] is None:
        return f"not cut, as no try lost at most {limit} on validation images"
    left = 100 / report["ratios"]["macs"]
    return f"cut to {left:.1f}% of the MACs{several}, the least that was found to lose at most {limit} on validation images"


_RESOURCES = {"macs": "MACs", "params": "parameters", "size": "bytes of weights"}


def _steps(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The repair steps of all rounds in order, each with a title that names its round if there are several."""
    return [
        {**step, "title": f"round {number}: {step['name']}" if len(rounds) > 1 else step["name"]}
        for number, one in enumerate(rounds, 1)
        for step in one["steps"]
    ]


def _view(report: Report) -> dict[str, Any]:
    """What the templates are given besides the report: headline, table, the search's curve, repair steps, classes by drop."""
    from markupsafe import Markup

    before, after = report["baseline"]["accuracy_per_class"], report["pruned"]["accuracy_per_class"]
    classes = [
        {"name": name, "before": before[name], "after": after[name], "points": 100 * (after[name] - before[name])}
        for name in before
        if before[name] is not None and after[name] is not None
    ]
    return {
        "report": report,
        "headline": headline(report),
        "rows": closing_rows(report),
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
        "classes": sorted(classes, key=lambda row: row["points"]),
        "passed": all(gate["verdict"] == "pass" for gate in report["gates"]),
        "total_s": sum(report["timings_s"].values()),
    }


@functools.cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader(__package__.rpartition(".")[0], "export")
    environment = Environment(
        loader=loader,
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        share=_share,
        points=_points,
        count=_count,
        milliseconds=_milliseconds,
        bytes=_bytes,
        cell=_markdown_cell,
        value=_value,
        limit=in_points,
    )
    return environment


def _points(drop: float) -> str:
    """A drop as a signed change of accuracy, without a negative zero."""
    return f"{-drop + 0.0:+.2f}" if abs(drop) >= 0.005 else "0.00"


def _value(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"


def _markdown_cell(text: str) -> str:
    """User text inside a Markdown table: nothing that starts markup, a column or a line."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+!|~" else letter for letter in str(text))
    return " ".join(escaped.split())


def _share(value: float) -> str:
    return f"{100 * value:.2f}%"


def _count(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {suffix}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    for limit, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.2f} {suffix}"
    return f"{value:.0f} B"


def _milliseconds(value: float) -> str:
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def _times(ratio: float, word: str) -> str:
    return f"{ratio:.2f}x {word}"
