"""Tables of a report, as rows of text for the terminal and the templates."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...prune.locked_share import rounded_up
from ..measure.accuracy import MEASURES
from ..runtime.providers import ON_GPU
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
        sides = [side["latency"][batch] for side in (before, after)]
        rows.append(
            (f"latency, batch {batch}", *_times(sides, "median_ms"), f"{_speedup(ratio)} speedup {_interval(ratio)}")
        )
        if found := device_ratio(report, batch):
            shown = f"{_speedup(found)} speedup {_interval(found)}"
            rows.append((f"on the device, batch {batch}", *_times(sides, "device_median_ms"), shown))
    plain = report.get("exported_baseline")
    if plain:
        sides, ratio = [plain, after["latency"][str(plain["batch"])]], plain["pruned_speedup"]
        name = f"batch {plain['batch']}, baseline as torch exports it"
        rows.append((name, *_times(sides, "median_ms"), f"{_speedup(ratio)} speedup {_interval(ratio)}"))
    return rows


def device_ratio(report: Report, batch: str) -> Mapping[str, float] | None:
    """The speedup with inputs and outputs kept on the device; None on the CPU, where there are no copies to leave out."""
    found: Mapping[str, float] | None = report["ratios"].get("device_latency", {}).get(batch)
    return found if report["provider"] in ON_GPU else None


def torch_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of other runtimes: (runtime, precision, batch, baseline, pruned, speedup, speedup on the device)."""
    return [
        (
            _RUNTIMES[row["runtime"]].format(report["provider"]),
            row["precision"],
            str(row["batch"]),
            *_times([row["baseline"], row["pruned"]], "median_ms"),
            *(f"{_speedup(row[key])} {_interval(row[key])}" for key in ("speedup", "device_speedup")),
        )
        for row in (report.get("torch_times") or {"rows": ()})["rows"]
    ]


def fused_files(report: Report) -> str:
    """On CUDA, which files were timed with fused biases; empty elsewhere, or if it is not known."""
    cuda = (report.get("conditions") or {}).get("cuda")
    if not cuda:
        return ""
    kept = [row["file"] for row in cuda["fused_biases"] if row["kept"]]
    return f"Biases fused (fuse_conv_bias): {', '.join(kept) or 'in no file'}."


def _times(sides: Sequence[Mapping[str, Any]], key: str) -> tuple[str, str]:
    first, second = (milliseconds(side[key]) for side in sides)
    return first, second


def _speedup(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio']:.2f}x"


def _interval(ratio: Mapping[str, float]) -> str:
    return f"({ratio['low']:.2f} to {ratio['high']:.2f})"


_RUNTIMES = {
    "onnxruntime": "ONNX Runtime, {}",
    "torch": "torch, eager",
    "torch.compile": "torch.compile",
    "tensorrt": "ONNX Runtime, tensorrt",
}


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
        batch = str(report["recipe"].get("measurement", {}).get("latency_batch", 1))
        speed, device = row["speedup"].get(batch), row.get("device_speedup", {}).get(batch)
        speeds = [f"{_speedup(speed)} {_interval(speed)}"] if speed else []
        if device and report["provider"] in ON_GPU:
            speeds.append(f"on the device {_speedup(device)} {_interval(device)}")
        rows.append(
            (
                row["file"],
                in_bytes(row["onnx_bytes"]),
                f"{share(parity['top1_agreement'])} ({parity['max_relative_difference']:.1e})",
                share(row["accuracy"]),
                f"{drop['points']:.2f} ({drop['low']:.2f} to {drop['high']:.2f})" if drop else "–",
                "; ".join(speeds) or "–",
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
        if report.get("latency_budget"):
            return f"cut to be {1 / left:.2f} times as fast at batch {report['latency_budget']['batch']}{several}"
        resource = next((name for name in _RESOURCES if name in budget), "macs")
        return f"cut to {100 * left:.1f}% of the {_RESOURCES[resource]}{several}"
    limit = in_points(search["max_drop"])
    if search["chosen"] is None:
        return f"not cut, since no try lost at most {limit} on validation images"
    left = 100 / report["ratios"]["macs"]
    return f"cut to {left:.1f}% of the MACs{several}, the fewest found that lose at most {limit} on validation images"


_RESOURCES = {"macs": "MACs", "params": "parameters", "size": "bytes of weights"}
