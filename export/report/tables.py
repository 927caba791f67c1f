"""Tables of a report, as rows of text for the terminal and the templates."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...prune.locked_share import rounded_up
from ..measure.accuracy import MEASURES
from .charts.search_curve import in_points
from .content import Report
from .wording import count, in_bytes, milliseconds, points, share, times


def closing_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The before/after table: (figure, baseline, pruned, change with its interval)."""
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
                f"{ratio['ratio']:.2f}x speedup ({ratio['low']:.2f} to {ratio['high']:.2f})",
            )
        )
    return rows


def release_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The run against the last release: (figure, release, this run, change); empty without a release."""
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


def lock_rows(report: Report) -> list[tuple[str, str, str, str, str]]:
    """What stays whole, by reason: (groups, MACs, parameters, time, reason); time is empty without a latency table."""
    rows = []
    for lock in (report.get("locked") or {"locks": ()})["locks"]:
        shares = [f"{100 * lock['shares'][name]:.1f}%" if name in lock["shares"] else "" for name in _LOCKED]
        rows.append((", ".join(group["name"] for group in lock["groups"]), *shares, lock["reason"]))
    return rows


def lowest_budgets(report: Report) -> str:
    """The lowest budgets that could be reached, as options; empty for a report without them."""
    known = (report.get("locked") or {"lowest": {}})["lowest"]
    return ", ".join(f"--{name} {rounded_up(value):g}" for name, value in known.items())


_LOCKED = ("macs", "params", "latency")


def variant_cells(report: Report) -> list[tuple[str, ...]]:
    """The table of precisions: (file, bytes, agreement with torch, accuracy, drop, speedup, memory)."""
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
    """How far the network was cut, in the unit of its budget, and in how many rounds."""
    search, rounds, budget = report["search"], len(report["rounds"]), report["recipe"]["budget"]
    several = f" in {rounds} rounds" if rounds > 1 else ""
    if search is None:
        left = next(gate["value"] for gate in report["gates"] if gate["name"] == "budget")
        if report["latency_budget"] is not None:
            return f"cut to be {1 / left:.2f} times as fast at batch {report['latency_budget']['batch']}{several}"
        resource = next((name for name in _RESOURCES if name in budget), "macs")
        return f"cut to {100 * left:.1f}% of the {_RESOURCES[resource]}{several}"
    limit = in_points(search["max_drop"])
    if search["chosen"] is None:
        return f"not cut, since no try lost at most {limit} on validation images"
    left = 100 / report["ratios"]["macs"]
    return f"cut to {left:.1f}% of the MACs{several}, the fewest found that lose at most {limit} on validation images"


_RESOURCES = {"macs": "MACs", "params": "parameters", "size": "bytes of weights"}
