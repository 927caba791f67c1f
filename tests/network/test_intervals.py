import math

import numpy as np
import pytest

from secateur.network.intervals import median_interval, paired_drop_interval, wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (45, 50), (912, 1000), (1, 3)])
def test_wilsons_bounds_solve_their_equation(successes, trials):
    """The bounds are the proportions p at which |share - p| is 1.96 standard errors of p."""
    interval = wilson_interval(successes, trials)
    share = successes / trials
    for bound in (interval.low, interval.high):
        error = 1.959963984540054 * math.sqrt(bound * (1 - bound) / trials)
        assert abs(share - bound) == pytest.approx(error, abs=1e-7)
    assert interval.low - 1e-12 <= share <= interval.high + 1e-12


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for successes, trials in ((45, 50), (3, 7)):
        peer = binomtest(successes, trials).proportion_ci(0.95, "wilson")
        found = wilson_interval(successes, trials)
        assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=1e-12)
    assert (wilson_interval(0, 0).low, wilson_interval(0, 0).high) == (0.0, 1.0)


def test_the_drop_interval_is_that_of_resampling_images():
    generator = np.random.default_rng(1)
    baseline, pruned = generator.random(300) < 0.9, generator.random(300) < 0.8
    found = paired_drop_interval(baseline, pruned, seed=3)
    drops = []
    for _ in range(4000):
        rows = generator.integers(0, 300, 300)
        drops.append(100 * (baseline[rows].mean() - pruned[rows].mean()))
    low, high = np.percentile(drops, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.5)
    assert found.high == pytest.approx(high, abs=0.5)
    assert paired_drop_interval(baseline, pruned, seed=3) == found


def test_the_sign_of_a_drop():
    right, wrong = np.ones(200, bool), np.zeros(200, bool)
    half = np.arange(200) < 100
    assert paired_drop_interval(right, half).low > 40
    assert paired_drop_interval(half, right).high < -40
    assert paired_drop_interval(right, wrong).low == paired_drop_interval(right, wrong).high == 100


def test_no_image_changed_sides():
    found = paired_drop_interval(np.ones(150, bool), np.ones(150, bool))
    assert (found.low, found.high) == (-2.0, 2.0)
    chance = (1 - found.high / 100) ** 150
    assert chance == pytest.approx(0.05, abs=0.003), (
        "the rule of three: a change this common would be missed 1 time in 20"
    )


def test_median_interval_agrees_with_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).lognormal(0, 0.5, 101)
    peer = bootstrap((values,), np.median, method="percentile", n_resamples=4000, rng=np.random.default_rng(1))
    found = median_interval(values)
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.04)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.04)
    assert found.low <= np.median(values) <= found.high
