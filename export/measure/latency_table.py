"""The latency table: every layer, and every operation between layers, at the widths that a plan may choose, timed on the
provider in the precision that ships.

Operations of one case (shape, stride, activation) are timed once. A point is a single operation as an ONNX graph; the overhead
of a session's call, timed alongside, is subtracted. Of a layer with many pairs of widths those along both sides are timed, and
a roofline fills in between.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...common.files import cache_folder
from ...common.progress import Progress, silent
from ...network.channels.group import ChannelGroup, Side
from ...network.network import Network
from ...prune.cost import CostModel
from ...prune.latency_table import BLOCK, LatencyTable, LayerTimes
from ...prune.widths.width_book import alignment
from .point_times import Conditions, Grid, Points, PointTimes
from .stopwatch import SessionStopwatch, Stopwatch
from .timed_calls import Call, Case, read_calls

FEW, ALIKE = 8, 3
"""Up to this many widths per side are all measured; of more, this many that are equally aligned."""


def measure_table(
    network: Network,
    groups: Sequence[ChannelGroup],
    costs: CostModel,
    baseline: Path,
    conditions: Conditions,
    round_to: str | int = "auto",
    *,
    source: str = "table",
    stopwatch: Stopwatch | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Time the operations that a plan may make narrower, at the widths that it may choose.

    Args:
        groups, costs: the network's.
        baseline: its ONNX file, whose time the sum of the operations is calibrated to.
        round_to: the alignment of widths, as in the budget.
        source: ``table`` times every operation; ``roofline`` only the whole file, and computes the rest.
        stopwatch: times graphs; ONNX Runtime on the provider if None.
        cache: the folder of cached measurements; the user's own (``SECATEUR_CACHE``) if None. Damaged files are measured again.

    Raises:
        InputError, MachineError: as :func:`~secateur.export.runtime.open_session`.
    """
    watch = stopwatch or SessionStopwatch(conditions.provider, conditions.threads)
    times = PointTimes(watch, conditions, conditions.about(), cache or cache_folder() / "latency")
    widths = widths_to_measure(groups, costs, round_to)
    ends = {member.layer for group in groups if group.ends_branch for member in group.consumers}
    calls = {name: found for name, found in read_calls(network, ends).items() if name in widths}
    grids: dict[Case, set[Grid]] = defaultdict(set)
    for name, found in calls.items():
        for call in found:
            grids[call.case].add(_grid(call, *widths[name]))
    known = times.all_points(grids, source, progress)
    layers = {
        name: tuple(_layer_times(call, known[call.case], _grid(call, *widths[name]), widths[name]) for call in found)
        for name, found in calls.items()
    }
    layers_ms = sum(
        one.at(costs.layers[name].outputs, costs.layers[name].inputs or 0)
        for name, of_layer in layers.items()
        for one in of_layer
    )
    whole_ms = times.whole(calls, costs, layers_ms, baseline, source)
    offset_ms, scale = max(0.0, whole_ms - layers_ms), min(1.0, whole_ms / layers_ms) if layers_ms else 1.0
    return LatencyTable(layers, offset_ms, {**times.about, "source": source}, scale)


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


def _grid(call: Call, outputs: Sequence[int], inputs: Sequence[int]) -> Grid:
    if not call.width:
        return (
            Grid(tuple(sorted({*outputs, *inputs})), (0,))
            if call.case.one_width
            else Grid(tuple(outputs), tuple(inputs))
        )
    widths = {max(1, round(call.width * size / outputs[-1])) for size in outputs} if call.share == 1 else set()
    return Grid(tuple(sorted({*(widths or {-(-call.width // 2)}), call.width})), (0,))


def _layer_times(call: Call, points: Points, grid: Grid, widths: tuple[Sequence[int], Sequence[int]]) -> LayerTimes:
    """The times of a call by the widths of the layer that it belongs to."""
    rows = tuple(tuple(call.share * points[out, into] for into in grid.inputs) for out in grid.outputs)
    outputs, full = grid.outputs, widths[0][-1]
    if call.width:  # by the width of its own map until here
        outputs = tuple(max(1, round(size * full / call.width)) for size in grid.outputs)
    return LayerTimes(outputs, grid.inputs, rows).monotone()
