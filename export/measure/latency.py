"""Latency of ONNX files, timed alternately in separate sessions, with a confidence interval and a noise floor.

Two timings of the same file differ because of the session (where its weights and buffers lie in memory), the moment (clock
frequency, other processes) and the order. Therefore each block opens new sessions, times its files alternately for a few
tenths of a millisecond each, in a random order and then in reverse, and the interval is computed over blocks. If opening and
warming up sessions takes long (large networks, large batches, a GPU's search for convolution algorithms), all blocks share
their sessions.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.environment import available_cores
from ...common.errors import InputError
from ...network.intervals import median_interval
from ..runtime.bound_runs import BoundRuns, bind
from ..runtime.classifier import read_classifier
from ..runtime.providers import CUDA_DEFAULTS, CudaOptions
from ..runtime.session import SessionSettings
from .paired_ratio import Ratio, block_log_ratio, ratio_of_blocks

SECONDS, MIN_BLOCKS, MAX_BLOCKS = 1.3, 8, 30
"""Seconds for each side of a comparison, and the blocks that they are divided into."""
WIDE, LONGER = 0.05, 4.0
"""While an interval is wider than this, more blocks follow, up to this multiple of the time."""
PATIENCE, KEPT_BLOCKS = 30.0, 6
"""Every block opens new sessions if that takes no longer than this many seconds in total. Otherwise the first ones are kept,
with at least this many blocks: the fewest for which an interval with 95% coverage exists."""
DEVICE_ROUNDS = 5
"""This many rounds of a block also take a sample on the device alone."""
SAMPLE_SECONDS = 3e-4
"""A sample is the mean of as many runs as fill this time; shorter ones would measure the resolution of the clock."""
WARM_UP_SECONDS = 0.5
"""A session is warm after running for this long."""
WARM_BELOW_SECONDS = 3e-3
"""If a run of the baseline is shorter than this, an untimed run precedes every sample: after another file has run, the first
run finds its weights evicted from the caches, which would affect a mean over few runs more than a mean over many.
"""


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one run of a whole batch, including copies to and from the device.

    ``median_ms`` is the median of the blocks' medians, with the bootstrap 95% interval from ``low_ms`` to ``high_ms``.
    ``device_median_ms`` is the same with inputs and outputs kept on the device.
    """

    median_ms: float
    p95_ms: float
    samples: int
    low_ms: float
    high_ms: float
    device_median_ms: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two files at one batch size, and the noise floor: the baseline against itself in the same rounds.

    ``device_ratio``: with inputs and outputs on the device. ``sessions``: the number of sessions in which each file was timed.
    """

    batch: int
    baseline: Latency
    pruned: Latency
    ratio: Ratio
    noise_floor: Ratio
    device_ratio: Ratio | None = None
    sessions: int = 1

    def meant(self, latency_of: str) -> Ratio:
        """The ratio ``end-to-end`` or of the ``device``.

        Raises:
            InputError: the device's was not measured.
        """
        if latency_of == "end-to-end":
            return self.ratio
        if self.device_ratio is None:
            raise InputError("The latency on the device was not measured. Run again without --resume.")
        return self.device_ratio

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Comparison":
        return cls(
            values["batch"],
            Latency(**values["baseline"]),
            Latency(**values["pruned"]),
            Ratio(**values["ratio"]),
            Ratio(**values["noise_floor"]),
            Ratio(**values["device_ratio"]) if values.get("device_ratio") else None,
            values.get("sessions", 1),
        )


@dataclass(frozen=True)
class TimingSettings:
    """How files are timed. ``threads`` of an operator on the CPU; 0 for all cores but one, which is left to other processes.

    ``cuda_graphs``: time replayed CUDA graphs. ``cuda``: options of that provider for all files; ``fused``: the files that run
    with fused biases besides.
    """

    provider: str = "cpu"
    threads: int = 0
    cuda_graphs: bool = False
    seed: int = 0
    cuda: CudaOptions = CUDA_DEFAULTS
    fused: tuple[Path, ...] = ()

    @property
    def used_threads(self) -> int:
        return self.threads or max(1, available_cores() - 1)

    def session_of(self, path: Path) -> SessionSettings:
        """The settings of the sessions of a file."""
        cuda = replace(self.cuda, fused_biases=True) if path in self.fused else self.cuda
        return SessionSettings(self.used_threads, self.cuda_graphs, cuda)


def compare_latency(
    baseline: Path,
    pruned: Path,
    input_shape: tuple[int, int, int],
    batch: int,
    provider: str = "cpu",
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Time two files alternately; see :func:`compare_latencies`.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> from pathlib import Path
        >>> path = secateur.export_onnx(network, Path("digits.onnx")).path
        >>> found = secateur.compare_latency(path, path, network.input_shape, batch=1)  # a file against itself
        >>> found.ratio.low < found.ratio.ratio < found.ratio.high  # of speed; above 1 the second is faster
        True
        >>> found.pruned.median_ms > 0
        True
    """
    settings = TimingSettings(provider, seed=seed)
    (found,) = compare_latencies(baseline, [pruned], input_shape, batch, settings, progress)
    return found


def compare_latencies(
    baseline: Path,
    others: Sequence[Path],
    input_shape: tuple[int, int, int],
    batch: int,
    settings: TimingSettings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Comparison, ...]:
    """Time files alternately with a baseline on the same seeded noise, in one run; returns a comparison for each.

    The baseline takes part twice, in two sessions. Every block opens a session of each file, warms them up, and times rounds:
    all sides in a random order, then in reverse, so that a steady drift affects all equally. There are 8 to 30 blocks in
    1.3 seconds per side (or the time of 8 blocks of one round, if that is longer), and up to four times that on a machine too
    unsteady for intervals of 5%. If 8 such blocks would take more than half a minute to open and warm up, the first sessions
    serve all blocks, 6 or more. The variation between sessions then shows only in the noise floor, so the intervals are
    widened by it at both ends.

    Raises:
        InputError: a file does not accept these images or this batch size.
        UsageError, MachineError: as :func:`~.runtime.open_session`.
    """
    settings = settings or TimingSettings()
    sides = [read_classifier(path) for path in (baseline, *others)]
    images = [side.noise(batch, input_shape, settings.seed) for side in sides]
    outputs = [side.outputs(noise) for side, noise in zip(sides, images, strict=True)]

    def opened(side: int) -> BoundRuns:
        at = side % len(sides)
        session = settings.session_of(sides[at].path)
        return bind(sides[at], images[at], outputs[at], settings.provider, session)

    return compare_runs(opened, len(sides), batch, settings.seed, progress)


def compare_runs(
    opened: Callable[[int], BoundRuns],
    sides: int,
    batch: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> tuple[Comparison, ...]:
    """Time anything that runs a batch in turns, as :func:`compare_latencies` does with files.

    Args:
        opened: opens side 0, 1, … anew, or returns what it opened before. Side 0 takes part twice, for the noise floor.
        pairs: (baseline, other) of each comparison; by default side 0 with every other.
    """
    samples, sessions = _time_in_turns(lambda side: opened(side % sides), sides + 1, seed, progress)
    measured = [_latency(samples, side, batch, seed) for side in range(sides)]

    def against(first: int, side: int, ratio: Callable[[Sequence[_Block], int, int], Ratio]) -> Ratio:
        found = ratio(samples, side, first)
        return found.widened(ratio(samples, sides, 0)) if sessions == 1 else found

    floor = _ratio(samples, sides)
    return tuple(
        Comparison(
            batch,
            measured[first],
            measured[side],
            against(first, side, _ratio),
            floor,
            against(first, side, _device_ratio),
            sessions,
        )
        for first, side in (pairs or [(0, side) for side in range(1, sides)])
    )


@dataclass(frozen=True)
class _Block:
    """Seconds ``[side, round, 2]`` of end-to-end samples, and ``[side, n]`` of a few samples on the device."""

    end_to_end: NDArray[np.float64]
    on_device: NDArray[np.float64]


def _time_in_turns(
    opened: Callable[[int], BoundRuns], sides: int, seed: int, progress: Callable[[int, int], None]
) -> tuple[list[_Block], int]:
    """The blocks, and the number of sessions per side."""
    shuffled, start = random.Random(seed), time.perf_counter()
    budget = SECONDS * sides
    estimates: list[float] = []
    kept: dict[int, BoundRuns] = {}
    for side in range(sides):
        kept[side] = opened(side)
        estimates.append(_warm_up(kept[side]))
    estimates[-1] = estimates[0]  # the same file
    repeats = [max(1, round(SAMPLE_SECONDS / estimate)) for estimate in estimates]
    warm = estimates[0] < WARM_BELOW_SECONDS
    first = time.perf_counter() - start  # the time to open and warm up every side
    if anew := first * MIN_BLOCKS <= PATIENCE:
        kept.clear()
        blocks = int(min(MAX_BLOCKS, max(MIN_BLOCKS, (budget - first) / (2 * first))))
    else:
        blocks, start = KEPT_BLOCKS, time.perf_counter()
    found: list[_Block] = []
    while len(found) < blocks or (
        time.perf_counter() - start < LONGER * budget and max(_width(found, side) for side in range(1, sides)) > WIDE
    ):
        left = budget - (time.perf_counter() - start)
        end = time.perf_counter() + (left / (blocks - len(found)) if len(found) < blocks else budget / blocks)
        found.append(_block(kept or _opened(opened, sides, shuffled), repeats, warm, shuffled, end))
        progress(min(len(found), blocks), blocks)
    return found, len(found) if anew else 1


def _opened(opened: Callable[[int], BoundRuns], sides: int, shuffled: random.Random) -> dict[int, BoundRuns]:
    """A session of each side, opened in a random order and warmed up."""
    sessions = {side: opened(side) for side in shuffled.sample(range(sides), sides)}
    for runs in sessions.values():
        _warm_up(runs, 1)
    return sessions


def _block(
    sessions: Mapping[int, BoundRuns], repeats: Sequence[int], warm: bool, shuffled: random.Random, end: float
) -> _Block:
    """Time rounds of all sides until ``end``, at least one."""
    sides = range(len(repeats))
    device: list[list[float]] = []
    rounds: list[NDArray[np.float64]] = []
    while not rounds or time.perf_counter() < end:
        order = shuffled.sample(sides, len(sides))
        times = np.empty((len(sides), 2))
        for turn, sequence in enumerate((order, order[::-1])):
            for side in sequence:
                times[side, turn] = _sample(sessions[side].end_to_end, repeats[side], warm)
        rounds.append(times)
        if len(device) < DEVICE_ROUNDS:
            on_device = {side: _sample(sessions[side].on_device, repeats[side], warm) for side in order}
            device.append([on_device[side] for side in sides])
    return _Block(np.stack(rounds, axis=1), np.array(device).T)


def _warm_up(runs: BoundRuns, times: int = 3) -> float:
    """Run both ways once, then a few more times unless that takes long; returns the seconds of one end-to-end run."""
    runs.on_device()
    found = [_sample(runs.end_to_end, 1)]
    while len(found) <= times and sum(found) < WARM_UP_SECONDS:
        found.append(_sample(runs.end_to_end, 1))
    return max(min(found), 1e-7)


def _sample(run: Callable[[], Any], repeats: int, warm: bool = False) -> float:
    if warm:
        run()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _latency(blocks: Sequence[_Block], side: int, batch: int, seed: int) -> Latency:
    seconds = np.concatenate([block.end_to_end[side].ravel() for block in blocks])
    medians = np.array([np.median(block.end_to_end[side]) for block in blocks])
    device = float(np.median(np.concatenate([block.on_device[side] for block in blocks])))
    median, interval = float(np.median(medians)), median_interval(medians, seed)
    return Latency(
        median_ms=1e3 * median,
        p95_ms=1e3 * float(np.percentile(seconds, 95)),
        samples=len(seconds),
        low_ms=1e3 * interval.low,
        high_ms=1e3 * interval.high,
        device_median_ms=1e3 * device,
        images_per_second=batch / median,
    )


def _ratio(blocks: Sequence[_Block], side: int, first: int = 0) -> Ratio:
    """A side, by default the first, against another."""
    logs = [block_log_ratio(block.end_to_end[first], block.end_to_end[side]) for block in blocks]
    return ratio_of_blocks(np.array(logs))


def _device_ratio(blocks: Sequence[_Block], side: int, first: int = 0) -> Ratio:
    """The same on the device."""
    logs = [block_log_ratio(block.on_device[first][:, None], block.on_device[side][:, None]) for block in blocks]
    return ratio_of_blocks(np.array(logs))


def _width(blocks: Sequence[_Block], side: int) -> float:
    ratio = _ratio(blocks, side)
    return (ratio.high - ratio.low) / ratio.ratio
