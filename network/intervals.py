"""Confidence intervals of measured figures: Wilson score intervals and seeded bootstraps."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval."""

    low: float
    high: float


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's 95% score interval of the proportion ``successes / trials`` (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    if trials == 0:
        return Interval(0.0, 1.0)
    share, z2 = successes / trials, Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def paired_drop_interval(
    baseline_correct: NDArray[np.bool_], pruned_correct: NDArray[np.bool_], seed: int = 0
) -> Interval:
    """Paired bootstrap 95% interval of the drop in accuracy, in percentage points.

    Images are resampled with replacement, the same ones for both networks. Only three outcomes matter (lost, won,
    unchanged), so their counts are drawn from the equivalent multinomial distribution. Where no image changed, resampling is
    degenerate and the interval is plus or minus 3/n, the rule of three.

    Args:
        baseline_correct: for each image, whether the baseline classified it correctly.
        pruned_correct: the same of the pruned network.
    """
    trials = len(baseline_correct)
    lost = int((baseline_correct & ~pruned_correct).sum())
    won = int((~baseline_correct & pruned_correct).sum())
    if lost == won == 0:
        return Interval(-300 / trials, 300 / trials)
    drawn = np.random.default_rng(seed).multinomial(
        trials, [lost / trials, won / trials, 1 - (lost + won) / trials], size=RESAMPLES
    )
    drops = 100 * (drawn[:, 0] - drawn[:, 1]) / trials
    low, high = np.percentile(drops, [2.5, 97.5])
    return Interval(float(low), float(high))


def median_interval(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """Percentile bootstrap 95% interval of the median."""
    generator = np.random.default_rng(seed)
    resamples = generator.integers(0, len(values), size=(2000, len(values)))
    low, high = np.percentile(np.median(values[resamples], axis=1), [2.5, 97.5])
    return Interval(float(low), float(high))
