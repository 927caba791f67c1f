"""Ratios from repeated paired measurements. Pure functions: no clock, no session."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """Baseline time over the other file's time, with a 95% interval; above 1, the other file is faster."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """The ratio in words; an interval that contains 1 means no measurable change."""
        if self.low > 1:
            return f"{self.ratio:.2f} times as fast"
        if self.high < 1:
            return f"{1 / self.ratio:.2f} times slower"
        return "no measurable change"

    def over(self, other: "Ratio") -> "Ratio":
        """The ratio to another file than the baseline, from its own ``other``; the widest interval that both allow."""
        return Ratio(self.ratio / other.ratio, self.low / other.high, self.high / other.low)

    def widened(self, floor: "Ratio") -> "Ratio":
        """The interval widened at both ends by the noise floor, which single sessions cannot distinguish from a change."""
        factor = max(floor.ratio, 1 / floor.ratio)
        return Ratio(self.ratio, self.low / factor, self.high * factor)


def block_log_ratio(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The log of ``first`` over ``second`` in one block: median over rounds.

    Args:
        first, second: seconds ``[rounds, samples]``; a file's samples of a round are taken before and after the other's. The
            lowest represents the round, since disturbances only add time.
    """
    return float(np.median(np.log(first.min(axis=1) / second.min(axis=1))))


def ratio_of_blocks(logs: NDArray[np.float64]) -> Ratio:
    """The ratio over blocks with separate sessions, and its interval, from ``logs`` ``[blocks]``.

    The Hodges-Lehmann estimate, and the interval from inverting Wilcoxon's signed rank test (Hollander, Wolfe and Chicken,
    Nonparametric Statistical Methods, 3rd edition, 3.2 and 3.3). It covers at 95% or more for any symmetric distribution.
    Outlying blocks (the machine was busy) affect it little, and it includes the variation between sessions of the same file,
    which rounds within one session never show. For two equal files it is symmetric, since they differ only by chance. With
    five blocks or fewer, the interval is the whole range, with lower coverage.
    """
    pairs = np.sort(((logs[:, None] + logs[None, :]) / 2)[np.triu_indices(len(logs))])
    cut = signed_rank_cut(len(logs))
    low, middle, high = np.exp([pairs[cut], np.median(pairs), pairs[len(pairs) - 1 - cut]])
    return Ratio(float(middle), float(low), float(high))


@functools.cache
def signed_rank_cut(blocks: int) -> int:
    """The number of lowest (and of highest) pair means outside the interval, by the exact null distribution.

    The largest whole number c with P(W <= c) at most 2.5%, W being the sum of the ranks of the positive signs.
    """
    counts = [1]  # of the subsets of the ranks 1..n, by their sum: the coefficients of the product of (1 + x^rank)
    for rank in range(1, blocks + 1):
        longer = counts + [0] * rank
        for total, count in enumerate(counts):
            longer[total + rank] += count
        counts = longer
    tails = itertools.accumulate(counts)
    within = sum(1 for _ in itertools.takewhile(lambda tail: tail <= (1 - CONFIDENCE) / 2 * 2**blocks, tails))
    return max(0, within - 1)
