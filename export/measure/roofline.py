"""A roofline: the time of an operation by five numbers of a machine, fitted from a few small graphs.

An operation takes as long as its arithmetic or its memory traffic, whichever is longer, and a launch. The arithmetic counts
widths rounded up to a tile, as kernels compute whole tiles (Williams et al., Roofline, CACM 2009).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from .layer_graphs import layer_graph, overhead_graph
from .stopwatch import AT_ONCE, Stopwatch
from .timed_calls import Case

ELEMENT_BYTES: Mapping[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
TILES = (1, 4, 8, 16, 32, 64)
PLACES, SMALL_PLACES = 28, 14
FITTED_WIDTHS = (8, 24, 32, 60, 64, 96, 128, 256)
"""Square convolutions of these widths are timed; some are no multiples of usual tiles."""


@dataclass(frozen=True)
class Roofline:
    """The five numbers.

    Attributes:
        macs_per_ms: multiply-accumulates in a millisecond.
        bytes_per_ms: bytes read or written in a millisecond.
        launch_ms: milliseconds of an operation that does nothing.
        tile_out: output channels are computed in multiples of this.
        tile_in: input channels are read in multiples of this.
    """

    macs_per_ms: float
    bytes_per_ms: float
    launch_ms: float
    tile_out: int
    tile_in: int

    def ms(self, case: Case, outputs: int, inputs: int, batch: int, precision: str = "fp32") -> float:
        """Milliseconds of an operation at these widths; ``inputs`` is ignored where the time depends on one width."""
        work = work_of(case, outputs, inputs, batch, precision, self.tile_out, self.tile_in)
        return self.launch_ms + max(work.macs / self.macs_per_ms, work.bytes / self.bytes_per_ms)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates, with widths rounded up to tiles, and bytes read and written."""

    macs: float
    bytes: float


def work_of(
    case: Case, outputs: int, inputs: int, batch: int, precision: str = "fp32", tile_out: int = 1, tile_in: int = 1
) -> Work:
    """The work of one operation on a batch."""
    size = ELEMENT_BYTES[precision]
    seen = math.prod(case.places)
    if case.kind == "linear":
        weights = outputs * inputs
        macs = batch * seen * _up(outputs, tile_out) * _up(inputs, tile_in)
        return Work(macs, size * (batch * seen * (outputs + inputs) + weights))
    if case.kind == "conv":
        made = math.prod(_places_made(case))
        kernel = math.prod(case.kernel)
        if case.groups == 0:
            return Work(batch * made * kernel * outputs, size * (batch * outputs * (seen + made) + outputs * kernel))
        weights = outputs * inputs // case.groups * kernel
        of_group = _up(outputs // case.groups, tile_out) * _up(max(1, inputs // case.groups), tile_in)
        macs = batch * made * kernel * case.groups * of_group
        return Work(macs, size * (batch * (inputs * seen + outputs * made) + weights))
    made = (
        math.prod(_places_made(case)) if case.kernel or case.kind == "pad" else 1 if case.kind == "globalpool" else seen
    )
    grown = case.groups if case.kind == "pad" else 1
    read = {"join": 1, "add": 2, "multiply": 2}.get(case.kind, 1)
    written = {"join": 0}.get(case.kind, 1)  # the layer before it writes the result in any case
    return Work(0.0, size * batch * outputs * (read * seen + written * grown * made))


def fit_roofline(watch: Stopwatch, batch: int, precision: str = "fp32", symmetric: bool = False) -> Roofline:
    """Fit the five numbers to the times of some twenty small graphs, in half a minute."""
    points = [*_points()]
    found: list[float] = []
    for start in range(0, len(points), AT_ONCE):
        chunk = points[start : start + AT_ONCE]
        graphs = [layer_graph(case, out, into, batch, precision, symmetric) for case, out, into in chunk]
        nothing, *times = watch.times([overhead_graph(chunk[0][0], 1, batch), *graphs])
        found += [max(1e-6, ms - nothing) for ms in times]
    return fit_times(points, found, batch, precision)


def fit_times(
    points: Sequence[tuple[Case, int, int]], found: Sequence[float], batch: int, precision: str = "fp32"
) -> Roofline:
    """The roofline whose times are the closest to those ``found``, by the sum of squared logarithms of their ratios."""
    measured = np.log(np.array(found))
    best: tuple[float, Roofline] | None = None
    for tile_out, tile_in in product(TILES, TILES):
        works = [work_of(*point, batch, precision, tile_out, tile_in) for point in points]
        macs, moved = (np.array([getattr(work, name) for work in works]) for name in ("macs", "bytes"))

        def residual(logs: NDArray[Any], macs: Any = macs, moved: Any = moved) -> NDArray[Any]:
            peak, bandwidth, launch = np.exp(logs)
            result: NDArray[Any] = np.log(launch + np.maximum(macs / peak, moved / bandwidth)) - measured
            return result

        start = np.log([np.max(macs / found), np.max(moved / found), max(1e-6, 0.5 * min(found))])
        fit = least_squares(residual, start, loss="soft_l1", f_scale=0.2)
        if best is None or fit.cost < best[0] - 1e-9:
            peak, bandwidth, launch = (float(f"{value:.6g}") for value in np.exp(fit.x))
            best = float(fit.cost), Roofline(peak, bandwidth, launch, tile_out, tile_in)
    assert best is not None
    return best[1]


def _points() -> list[tuple[Case, int, int]]:
    """The graphs that are timed: convolutions of several widths and sizes of kernels, and elementwise sums."""

    def conv(kernel: int, places: int) -> Case:
        around = (kernel // 2,) * 4
        return Case("conv", (places, places), (kernel, kernel), (1, 1), around, (1, 1))

    square = [(conv(3, PLACES if width < 128 else SMALL_PLACES), width, width) for width in FITTED_WIDTHS]
    pointwise = [
        (conv(1, SMALL_PLACES), out, into) for out, into in ((16, 16), (60, 64), (64, 60), (256, 64), (64, 256))
    ]
    uneven = [(conv(3, SMALL_PLACES), out, into) for out, into in ((32, 128), (128, 32), (36, 64), (64, 36))]
    sums = [(Case("add", (size, size)), width, 0) for size, width in ((7, 16), (28, 32), (56, 64), (28, 256))]
    return [*square, *pointwise, *uneven, *sums]


def _places_made(case: Case) -> list[int]:
    """The spatial sizes of the output of a convolution, a pool or a padding shortcut."""
    if case.kind == "pad":
        return [-(-size // step) for size, step in zip(case.places, case.stride, strict=True)]
    half, dilation = len(case.padding) // 2, case.dilation or (1,) * len(case.kernel)
    sides = zip(case.places, case.padding[:half], case.padding[half:], case.kernel, case.stride, dilation, strict=True)
    return [(size + before + after - d * (k - 1) - 1) // step + 1 for size, before, after, k, step, d in sides]


def _up(width: int, tile: int) -> int:
    return -(-width // tile) * tile
