"""Ratios over blocks, against an enumeration of all signs and against simulated machines."""

import itertools

import numpy as np
import pytest
from scipy import stats

from secateur.export.measure.paired_ratio import Ratio, block_log_ratio, ratio_of_blocks, signed_rank_cut


@pytest.mark.parametrize("blocks", [6, 8, 11])
def test_the_cut_is_that_of_the_signed_rank_test(blocks):
    """All 2**n signs, one by one: the largest sum of ranks whose tail is at most 2.5%."""
    ranks = np.arange(1, blocks + 1)
    sums = np.array([sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=blocks)])
    assert (sums <= signed_rank_cut(blocks)).mean() <= 0.025 < (sums <= signed_rank_cut(blocks) + 1).mean()


def test_the_interval_holds_just_what_the_test_does_not_refuse():
    logs = np.random.default_rng(3).normal(0.02, 0.05, 14)
    found = ratio_of_blocks(logs)
    for shift, refused in ((np.log(found.low) - 1e-6, True), (np.log(found.low) + 1e-6, False)):
        assert (stats.wilcoxon(logs - shift, method="exact").pvalue < 0.05) == refused
    for shift, refused in ((np.log(found.high) + 1e-6, True), (np.log(found.high) - 1e-6, False)):
        assert (stats.wilcoxon(logs - shift, method="exact").pvalue < 0.05) == refused


@pytest.mark.parametrize("blocks", [8, 20])
@pytest.mark.parametrize("noise", ["normal", "heavy tails", "two states"])
def test_coverage_on_simulated_machines(blocks, noise):
    generator, held, runs = np.random.default_rng(blocks), 0, 800
    for _ in range(runs):
        if noise == "normal":
            logs = generator.normal(0, 0.02, blocks)
        elif noise == "heavy tails":
            logs = 0.02 * generator.standard_t(1, blocks)
        else:  # each session is in one of two states: lucky with its memory or not
            luck = generator.integers(0, 2, (2, blocks))
            logs = 0.03 * (luck[0] - luck[1]) + generator.normal(0, 0.005, blocks)
        found = ratio_of_blocks(logs)
        held += found.low <= 1 <= found.high
    assert held / runs >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)


def test_a_round_goes_by_its_undisturbed_sample():
    first = np.array([[2.0, 9.0], [2.0, 2.0], [50.0, 2.0]])
    second = np.array([[1.0, 1.0], [30.0, 1.0], [1.0, 1.0]])
    assert block_log_ratio(first, second) == pytest.approx(np.log(2))


def test_few_blocks_give_their_whole_range():
    found = ratio_of_blocks(np.log([1.1, 1.2, 1.3]))
    assert (found.low, found.high) == pytest.approx((1.1, 1.3))
    assert ratio_of_blocks(np.log([1.25])) == Ratio(pytest.approx(1.25), pytest.approx(1.25), pytest.approx(1.25))
