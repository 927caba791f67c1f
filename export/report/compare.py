"""Compare two reports: figures with the change from the first to the second, gates, recipes and environments.

Any two reports can be compared: if devices, providers, drivers or images differ, the change is left out with a warning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.files import write_text
from ..measure.accuracy import MEASURES
from .release import accuracy_change, image_differences, latency_change, machine_differences
from .rendering import templates
from .tables import headline
from .wording import count, figure, in_bytes, milliseconds, points, share

Report = Mapping[str, Any]
NOT_COMPARABLE = "not comparable"
Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class ReportComparison:
    """A comparison of two reports, which are called by ``names``.

    ``rows`` are (figure, first, second, change), ``gates`` (name, first, second), ``recipes`` and ``environments`` the settings
    and versions that differ (name, first, second); ``alarms`` say what cannot be compared and why.
    """

    names: tuple[str, str]
    headlines: tuple[str, str]
    alarms: tuple[str, ...]
    rows: tuple[Row, ...]
    gates: tuple[tuple[str, str, str], ...]
    recipes: tuple[tuple[str, str, str], ...]
    environments: tuple[tuple[str, str, str], ...]


def compare_reports(first: Report, second: Report, names: tuple[str, str]) -> ReportComparison:
    """Compare two reports."""
    machine, images = machine_differences(first, second), image_differences(first, second)
    alarms = []
    if machine:
        alarms.append(f"Latency is not comparable. {'; '.join(map(str, machine))}.")
    if images:
        alarms.append(f"Accuracy is not comparable. {'; '.join(map(str, images))}.")
    rows = [_accuracy(first, second, comparable=not images)]
    rows.append(("drop from its baseline", _drop(first), _drop(second), ""))
    for what, key, words in (
        ("MACs", "macs", count),
        ("parameters", "parameters", count),
        ("ONNX file", "onnx_bytes", in_bytes),
    ):
        ours, theirs = (side["pruned"][key] for side in (first, second))
        rows.append((what, words(ours), words(theirs), f"{100 * (theirs / ours - 1):+.2f}%" if ours else ""))
    shared = [batch for batch in first["ratios"]["latency"] if batch in second["ratios"]["latency"]]
    for batch in sorted(shared, key=int):
        rows += _latency(first, second, int(batch), comparable=not machine)
    return ReportComparison(
        names,
        (_headline(first), _headline(second)),
        tuple(alarms),
        tuple(rows),
        tuple(_gates(first, second)),
        tuple(_different(first["recipe"], second["recipe"])),
        tuple(_different(_machine(first), _machine(second))),
    )


def to_markdown(comparison: ReportComparison) -> str:
    """The comparison for a pull request."""
    return str(templates().get_template("compare.md.jinja").render(c=comparison))


def to_html(comparison: ReportComparison) -> str:
    """The comparison as one self-contained page."""
    return str(templates().get_template("compare.html.jinja").render(c=comparison))


def write_comparison(comparison: ReportComparison, folder: Path) -> tuple[Path, Path]:
    """Write ``compare.md`` and ``compare.html`` into ``folder``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be created ({error.strerror}). Choose another --out.") from error
    paths = folder / "compare.md", folder / "compare.html"
    write_text(paths[0], to_markdown(comparison))
    write_text(paths[1], to_html(comparison))
    return paths


def _headline(report: Report) -> str:
    return f"{report['model']}, ranked by {report['recipe']['ranking']['rank_by']}, {headline(report)}"


def _accuracy(first: Report, second: Report, comparable: bool) -> Row:
    what = MEASURES[second["accuracy_against"]]
    shares = share(first["pruned"]["accuracy"]), share(second["pruned"]["accuracy"])
    if not comparable:
        return (what, *shares, NOT_COMPARABLE)
    drop, paired = accuracy_change(first, second)
    how = "paired" if paired else "unpaired"
    return (what, *shares, f"{points(drop.points)} points ({points(drop.high)} to {points(drop.low)}, {how})")


def _drop(report: Report) -> str:
    drop = report["drop"]
    return f"{points(drop['points'])} points ({points(drop['high'])} to {points(drop['low'])})"


def _latency(first: Report, second: Report, batch: int, comparable: bool) -> list[Row]:
    key = str(batch)
    medians = [milliseconds(side["pruned"]["latency"][key]["median_ms"]) for side in (first, second)]
    speeds = []
    for side in (first, second):
        ratio = side["ratios"]["latency"][key]
        speeds.append(f"{ratio['ratio']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})")
    words = NOT_COMPARABLE
    change = latency_change(first, second, batch)
    if comparable and change is not None:
        words = f"{change.percent:+.1f}% ({change.low:+.1f} to {change.high:+.1f}), noise {change.noise:.1f}%"
    return [
        (f"latency, batch {batch}", medians[0], medians[1], words),
        (f"speedup over its baseline, batch {batch}", speeds[0], speeds[1], ""),
    ]


def _gates(first: Report, second: Report) -> Iterator[tuple[str, str, str]]:
    judged = [{gate["name"]: gate for gate in side["gates"]} for side in (first, second)]
    for name in dict.fromkeys([*judged[0], *judged[1]]):
        cells = []
        for gates in judged:
            gate = gates.get(name)
            cells.append(
                f"{gate['verdict']} ({figure(gate['value'])} against {figure(gate['limit'])})" if gate else "not set"
            )
        yield name, cells[0], cells[1]


def _machine(report: Report) -> dict[str, Any]:
    return {**report["environment"], "provider": report["provider"], "secateur": report["secateur_version"]}


def _different(first: Mapping[str, Any], second: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """The (name, first, second) of every value that differs; names of nested values have dots."""
    for key in dict.fromkeys([*first, *second]):
        ours, theirs = first.get(key), second.get(key)
        if isinstance(ours, Mapping) or isinstance(theirs, Mapping):
            yield from _different(ours or {}, theirs or {}, f"{above}{key}.")
        elif ours != theirs:
            yield f"{above}{key}", _text(ours), _text(theirs)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)
