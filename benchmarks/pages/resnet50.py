"""Blocks of the page on ResNet-50, on a GPU and on a CPU."""

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.blocks import interval, table

RESULTS = "resnet50.json"
Row = Mapping[str, Any]


def gpu_large_batches(results: Any) -> list[str]:
    """Batch 64 on a GPU."""
    return _speedups(results, gpu=True, batch=64)


def gpu_single_images(results: Any) -> list[str]:
    """Batch 1 on a GPU."""
    return _speedups(results, gpu=True, batch=1)


def cpu(results: Any) -> list[str]:
    """Batch 1 on a CPU."""
    return _speedups(results, gpu=False, batch=1)


def noise(results: Any) -> list[str]:
    """A second session of the whole network compared with the first."""
    rows = []
    for machine, found in results.items():
        for row in found["latency"]:
            floor = row["noise_floor"]
            shown = interval(floor["ratio"], floor["low"], floor["high"], 3)
            rows.append((machine, _condition(row), str(row["sessions"]), shown))
    return table(("machine", "how", "sessions of each file", "whole against itself (95% CI)"), rows, left=2)


def single_sessions(results: Any) -> list[str]:
    """Medians of single sessions, without intervals."""
    lines: list[str] = []
    for found in results.values():
        single = found.get("single_sessions")
        if single:
            rows = [
                (how, name, f"{value:.3f}") for how, files in single["medians"].items() for name, value in files.items()
            ]
            lines += [single["how"], "", *table(("how", "file", "median, ms"), rows, left=2)]
    return lines


def macs_left(results: Any) -> list[str]:
    """The MACs that each cut leaves."""
    first = next(iter(results.values()))
    rows = [(name, f"{100 * share:.1f}%") for name, share in first["macs_left"].items()]
    weights = f"{first['macs'] / 1e9:.2f} G MACs, {first['weights']} for weights, seed {first['seed']}"
    return table((f"ResNet-50 ({weights})", "MACs left"), rows)


def _speedups(results: Any, *, gpu: bool, batch: int) -> list[str]:
    lines: list[str] = []
    for machine, found in results.items():
        measured = [row for row in found["latency"] if row["batch"] == batch]
        if bool(found["environment"].get("gpu")) != gpu or not measured:
            continue
        names = list(dict.fromkeys(name for row in measured for name in row["cuts"]))
        rows = [(name, *(cell for row in measured for cell in _cells(row, name, gpu))) for name in names]
        columns = [
            column
            for row in measured
            for column in ([f"{_condition(row)}, on the device", "end to end"] if gpu else [_condition(row)])
        ]
        lines += [
            f"{machine}, speedup over the whole network (95% CI):",
            "",
            *table(("cut to half of the MACs", *columns), rows),
            "",
        ]
    return lines[:-1]


def _cells(row: Row, name: str, gpu: bool) -> list[str]:
    cut = row["cuts"].get(name)
    if cut is None:
        return ["not measured"] * (2 if gpu else 1)
    ratios = ([cut["device_speedup"]] if gpu else []) + [cut["speedup"]]
    return [interval(one["ratio"], one["low"], one["high"]) for one in ratios]


def _condition(row: Row) -> str:
    how = row.get("condition", "secateur's")
    return f"{row['precision']}, batch {row['batch']}" + ("" if how == "secateur's" else f", {how}")
