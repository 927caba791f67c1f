"""A run's figures in the format of github-action-benchmark, for a history over releases.

Its custom tools read a list of {name, unit, value, range, extra}, with one file for figures where smaller is better and one
for figures where bigger is better (github.com/benchmark-action/github-action-benchmark, README and src/extract.ts).
"""

from collections.abc import Mapping
from typing import Any

from ..measure.accuracy import MEASURES

Report = Mapping[str, Any]
Entry = dict[str, Any]


def smaller_is_better(report: Report) -> list[Entry]:
    """Latency of model.onnx by batch size, its size, MACs and parameters, for ``tool: customSmallerIsBetter``."""
    pruned, machine = report["pruned"], _machine(report)
    entries = []
    for batch in sorted(pruned["latency"], key=int):
        latency = pruned["latency"][batch]
        entry = _entry(f"latency, batch {batch}", "ms", latency["median_ms"])
        if "low_ms" in latency:
            entry["range"] = _spread(latency["median_ms"], latency["low_ms"], latency["high_ms"])
        entry["extra"] = f"median of {latency['samples']} samples, p95 {latency['p95_ms']:.4g} ms\n{machine}"
        entries.append(entry)
    return [
        *entries,
        _entry("model.onnx", "bytes", pruned["onnx_bytes"], f"sha256 {pruned['onnx_sha256']}"),
        _entry("MACs", "MACs", pruned["macs"]),
        _entry("parameters", "parameters", pruned["parameters"]),
    ]


def bigger_is_better(report: Report) -> list[Entry]:
    """Accuracy of model.onnx and its speedup by batch size, for ``tool: customBiggerIsBetter``."""
    pruned = report["pruned"]
    interval = pruned["accuracy_interval"]
    value = 100 * pruned["accuracy"]
    accuracy = _entry(MEASURES[report["accuracy_against"]], "%", value, f"on {report['drop']['images']} test images")
    accuracy["range"] = _spread(value, 100 * interval["low"], 100 * interval["high"])
    entries = [accuracy]
    for batch in sorted(report["ratios"]["latency"], key=int):
        ratio = report["ratios"]["latency"][batch]
        entry = _entry(f"speedup, batch {batch}", "x", ratio["ratio"], _machine(report))
        entry["range"] = _spread(ratio["ratio"], ratio["low"], ratio["high"])
        entries.append(entry)
    return entries


def _entry(name: str, unit: str, value: float, extra: str = "") -> Entry:
    return {"name": name, "unit": unit, "value": value, **({"extra": extra} if extra else {})}


def _spread(value: float, low: float, high: float) -> str:
    """The larger half-width of a 95% confidence interval."""
    return f"± {max(value - low, high - value):.4g}"


def _machine(report: Report) -> str:
    environment = report["environment"]
    return f"{report['provider']}, {environment['gpu'] or environment['processor']}, {environment['cores']} cores"
