"""The latency table: every layer at the widths that a plan may choose, timed on the provider and cached between runs.

Layers of one kind (shape, stride, activation) are timed once. A point is a single layer as an ONNX graph; the overhead of a
session's call, timed alongside, is subtracted. Points are cached on disk by device, provider and its options, precision,
batch size, version of ONNX Runtime and kind of layer, one file per kind, so that an interrupted measurement resumes and other
networks reuse them.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.environment import describe_environment
from ...common.errors import InputError
from ...common.files import cache_folder, read_json, sha256_file, sha256_json, write_json
from ...common.progress import Progress, silent
from ...network.channels.group import ChannelGroup, Side
from ...network.network import Network
from ...prune.cost import CostModel
from ...prune.latency_table import BLOCK, LatencyTable, LayerTimes
from ...prune.widths.width_book import alignment
from ..runtime.providers import ON_GPU, CudaOptions, runtime_packages
from .layer_graphs import LayerCase, empty_graph, layer_graph, read_cases
from .stopwatch import AT_ONCE, SessionStopwatch, Stopwatch

CACHE_VERSION = 1
FEW, ALIKE = 8, 3
"""Up to this many widths per side are all measured; of more, this many that are equally aligned."""
Points = dict[tuple[int, int], float]
"""Milliseconds by (outputs, inputs); inputs are 0 for a depthwise layer."""


@dataclass(frozen=True)
class Conditions:
    """The conditions of all times in a table. ``threads`` of an operator on the CPU; 0 for ONNX Runtime's choice."""

    provider: str
    batch: int
    threads: int = 0
    precision: str = "fp32"

    def about(self) -> dict[str, Any]:
        """The conditions with the device, the provider's options and the runtime's version, as stored in the cache."""
        machine = describe_environment()
        on_gpu = self.provider in ON_GPU
        return {
            "version": CACHE_VERSION,
            "device": machine.gpu if on_gpu else machine.processor,
            "cores": machine.cores,
            "provider": self.provider,
            "precision": self.precision,
            "batch": self.batch,
            "threads": self.threads,
            "onnxruntime": next(iter(runtime_packages().values()), ""),
            **({"options": CudaOptions().to_dict()} if on_gpu else {}),
        }


def measure_table(
    network: Network,
    groups: Sequence[ChannelGroup],
    costs: CostModel,
    baseline: Path,
    conditions: Conditions,
    round_to: str | int = "auto",
    *,
    stopwatch: Stopwatch | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Time the layers that a plan may make narrower, at the widths that it may choose.

    Args:
        groups, costs: the network's.
        baseline: its ONNX file, whose time the sum of the layers is calibrated to.
        round_to: the alignment of widths, as in the budget.
        stopwatch: times graphs; ONNX Runtime on the provider if None.
        cache: the folder of cached measurements; the user's own (``SECATEUR_CACHE``) if None. Damaged files are measured again.

    Raises:
        InputError, MachineError: as :func:`~secateur.export.runtime.open_session`.
    """
    watch = stopwatch or SessionStopwatch(conditions.provider, conditions.threads)
    folder = cache or cache_folder() / "latency"
    about = conditions.about()
    widths = widths_to_measure(groups, costs, round_to)
    calls = {name: cases for name, cases in read_cases(network).items() if name in widths}
    wanted: dict[LayerCase, set[tuple[int, int]]] = defaultdict(set)
    for name, cases in calls.items():
        for case in cases:
            wanted[case] |= set(_grid(case, *widths[name]))
    total, done = sum(map(len, wanted.values())), 0
    known: dict[LayerCase, Points] = {}
    for case, points in wanted.items():

        def step(count: int, before: int = done) -> None:
            progress(before + count, total)

        known[case] = _measured(case, points, about, folder, watch, step)
        done += len(points)
        progress(done, total)
    layers = {
        name: tuple(_layer_times(case, known[case], *widths[name]) for case in cases) for name, cases in calls.items()
    }
    layers_ms = sum(
        times.at(costs.layers[name].outputs, costs.layers[name].inputs or 0)
        for name, of_layer in layers.items()
        for times in of_layer
    )
    whole_ms = _whole(calls, costs, layers_ms, about, baseline, folder, watch)
    offset_ms, scale = max(0.0, whole_ms - layers_ms), min(1.0, whole_ms / layers_ms) if layers_ms else 1.0
    return LatencyTable(layers, offset_ms, about, scale)


def widths_to_measure(
    groups: Sequence[ChannelGroup], costs: CostModel, round_to: str | int
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The (outputs, inputs) to time for every layer that an open group affects.

    Multiples of the group's step and the full width: all of them if they are few, otherwise some that are equally aligned,
    including both ends.
    """
    steps: dict[tuple[str, Side], int] = defaultdict(int)
    for group in groups:
        if group.locked:
            continue
        for member in group.members:
            base = alignment(group, round_to) * max(1, len(member.channels[0]))
            steps[member.layer, member.side] = math.gcd(steps[member.layer, member.side], base)
    result = {}
    for layer in dict.fromkeys(layer for layer, _ in steps):
        shape = costs.layers.get(layer)
        if shape is not None and shape.inputs is not None:
            result[layer] = (
                _axis(shape.outputs, math.lcm(steps[layer, "out"], shape.groups)),
                _axis(shape.inputs, math.lcm(steps[layer, "in"], shape.groups)),
            )
    return result


def _axis(width: int, step: int) -> tuple[int, ...]:
    """The widths of one side to time, ascending; ``step`` is 0 for a side that no open group affects."""
    multiples = [*range(step, width, step), width] if 0 < step < width else [width]
    if len(multiples) <= FEW:
        return tuple(multiples)
    by_alignment: dict[int, list[int]] = defaultdict(list)
    for size in multiples:
        by_alignment[math.gcd(size, BLOCK)].append(size)
    chosen = {width}
    for sizes in by_alignment.values():
        last = len(sizes) - 1
        chosen.update(sizes[round(place * last / (ALIKE - 1))] for place in range(ALIKE))
    return tuple(sorted(chosen))


def _grid(case: LayerCase, outputs: Sequence[int], inputs: Sequence[int]) -> list[tuple[int, int]]:
    if case.depthwise:
        return [(size, 0) for size in sorted({*outputs, *inputs})]
    return [(out, into) for out in outputs for into in inputs]


def _layer_times(case: LayerCase, points: Points, outputs: Sequence[int], inputs: Sequence[int]) -> LayerTimes:
    if case.depthwise:
        sizes = tuple(sorted({*outputs, *inputs}))
        return LayerTimes(sizes, (0,), tuple((points[size, 0],) for size in sizes)).monotone()
    rows = tuple(tuple(points[out, into] for into in inputs) for out in outputs)
    return LayerTimes(tuple(outputs), tuple(inputs), rows).monotone()


def _measured(
    case: LayerCase,
    wanted: set[tuple[int, int]],
    about: Mapping[str, Any],
    folder: Path,
    watch: Stopwatch,
    progress: Any,
) -> Points:
    """All wanted points of a kind of layer: cached ones, and the others timed and cached."""
    key = {**about, "layer": _plain(case.to_json())}
    path = folder / f"{case.kind}-{sha256_json(key)[:16]}.json"
    points = _kept(path, key)
    missing = sorted(wanted - points.keys())
    for start in range(0, len(missing), AT_ONCE):
        chunk = missing[start : start + AT_ONCE]
        graphs = [layer_graph(case, out, into, about["batch"]) for out, into in chunk]
        nothing, *found = watch.times([empty_graph(about["batch"]), *graphs])
        for point, ms in zip(chunk, found, strict=True):
            points[point] = float(f"{max(0.0, ms - nothing):.6g}")
        write_json(path, {"key": key, "ms": {f"{out}x{into}": ms for (out, into), ms in sorted(points.items())}})
        progress(len(wanted) - len(missing) + start + len(chunk))
    return points


def _whole(
    calls: Mapping[str, Sequence[LayerCase]],
    costs: CostModel,
    layers_ms: float,
    about: Mapping[str, Any],
    baseline: Path,
    folder: Path,
    watch: Stopwatch,
) -> float:
    """The baseline's time in the milliseconds of its layers' table, from runs of the whole alternating with runs of all its
    layers.
    """
    parts: dict[tuple[LayerCase, int, int], int] = {}
    order = []
    for name, cases in calls.items():
        for case in cases:
            outputs, inputs = costs.layers[name].outputs, costs.layers[name].inputs or 0
            order.append(parts.setdefault((case, outputs, inputs), len(parts)))
    key = {**about, "network": sha256_file(baseline), "layers": sorted(calls)}
    path = folder / f"network-{sha256_json(key)[:16]}.json"
    kept = _read(path, key)
    try:
        return float(kept["whole_ms"])
    except (KeyError, TypeError, ValueError):
        graphs = [layer_graph(case, outputs, inputs, about["batch"]) for case, outputs, inputs in parts]
        ratio = watch.whole_to_parts(baseline, about["batch"], graphs, order)
        (call_ms,) = watch.times([empty_graph(about["batch"])])
        whole_ms = float(f"{ratio * (layers_ms + len(order) * call_ms):.6g}")
        write_json(path, {"key": key, "whole_ms": whole_ms, "whole_to_parts": ratio, "call_ms": call_ms})
        return whole_ms


def _kept(path: Path, key: Mapping[str, Any]) -> Points:
    """The points in a cache file; none if it is missing, damaged or from other conditions."""
    values = _read(path, key)
    try:
        pairs = ((text.split("x"), float(ms)) for text, ms in values["ms"].items())
        return {(int(out), int(into)): ms for (out, into), ms in pairs if math.isfinite(ms) and ms >= 0}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = read_json(path)
    except InputError:
        return {}
    return values if isinstance(values, dict) and values.get("key") == key else {}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
