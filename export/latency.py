"""Latency of two ONNX files, timed in turns, with an interval and a noise floor."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..network.evaluation import median_interval
from .runtime import open_session

MIN_ROUNDS, MAX_ROUNDS, ROUND_SECONDS = 30, 150, 4.0
SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one run of a whole batch, copies to and from the device included.

    ``low_ms`` and ``high_ms`` are the bootstrap 95% interval of the median.
    """

    median_ms: float
    p95_ms: float
    samples: int
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of baseline time over pruned time, with a bootstrap 95% interval; above 1 is faster."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """In words; an interval that spans 1 is no change."""
        if self.low > 1:
            return f"{self.ratio:.2f} times as fast"
        if self.high < 1:
            return f"{1 / self.ratio:.2f} times slower"
        return "no measurable change"


@dataclass(frozen=True)
class Comparison:
    """Two files at one batch size, and the baseline against itself in the same rounds: the noise floor."""

    batch: int
    baseline: Latency
    pruned: Latency
    ratio: Ratio
    noise_floor: Ratio

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
        )


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
    """Time two files in turns on the same seeded noise.

    Every round times baseline, pruned and a second session of the baseline, in an order that rotates; a sample is the mean
    of as many runs as fill two milliseconds. Rounds: as many as fit four seconds, at least 30, at most 150.

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
    images = np.random.default_rng(seed).standard_normal((batch, *input_shape), dtype=np.float32)
    runs = [_runner(path, images, provider) for path in (baseline, pruned, baseline)]
    estimates = [_warm_up(run) for run in runs]
    repeats = [max(1, round(SAMPLE_SECONDS / estimate)) for estimate in estimates]
    per_round = sum(count * estimate for count, estimate in zip(repeats, estimates, strict=True))
    rounds = int(min(MAX_ROUNDS, max(MIN_ROUNDS, ROUND_SECONDS / per_round)))
    samples = np.empty((rounds, 3))
    for index in range(rounds):
        for turn in range(3):
            which = (index + turn) % 3
            start = time.perf_counter()
            for _ in range(repeats[which]):
                runs[which]()
            samples[index, which] = (time.perf_counter() - start) / repeats[which]
        progress(index + 1, rounds)
    return Comparison(
        batch,
        _latency(samples[:, 0], seed),
        _latency(samples[:, 1], seed),
        _ratio(samples[:, 0] / samples[:, 1], seed),
        _ratio(samples[:, 0] / samples[:, 2], seed),
    )


def _runner(path: Path, images: NDArray[np.float32], provider: str) -> Callable[[], Any]:
    session = open_session(path, provider).session
    feed = {session.get_inputs()[0].name: images}
    return lambda: session.run(None, feed)


def _warm_up(run: Callable[[], Any]) -> float:
    """Run a few times; the seconds that one run takes."""
    run()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return max(min(times), 1e-7)


def _latency(seconds: NDArray[np.float64], seed: int) -> Latency:
    interval = median_interval(seconds, seed)
    median, p95 = float(np.median(seconds)), float(np.percentile(seconds, 95))
    return Latency(1e3 * median, 1e3 * p95, len(seconds), 1e3 * interval.low, 1e3 * interval.high)


def _ratio(ratios: NDArray[np.float64], seed: int) -> Ratio:
    interval = median_interval(ratios, seed)
    return Ratio(float(np.median(ratios)), interval.low, interval.high)
