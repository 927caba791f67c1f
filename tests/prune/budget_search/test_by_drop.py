"""The search for a budget on drop curves made up for it."""

import random

import pytest

from secateur.prune.budget_search.by_drop import FIRST, NARROWEST, RESOLUTION, Search, Trial, search


def over(curve, limit, seen=None):
    """Search where ``curve`` gives the upper end of the drop at a fraction, and all that is asked for is reached."""

    def attempt(fraction):
        if seen is not None:
            seen.append(fraction)
        return Trial(fraction, fraction, curve(fraction) - 0.5, curve(fraction) - 1.0, curve(fraction))

    return search(attempt, limit)


@pytest.mark.parametrize("seed", range(50))
def test_on_a_monotone_curve_it_comes_within_its_resolution_of_the_truth(seed):
    """Brute force: the smallest of 10,000 fractions that holds."""
    draw = random.Random(seed)
    height, power, limit = draw.uniform(1, 90), draw.uniform(0.3, 8), draw.uniform(0.05, 5)

    def curve(fraction):
        return height * (1 - fraction) ** power

    truth = next(step / 10_000 for step in range(1, 10_001) if curve(step / 10_000) <= limit)
    found = over(curve, limit)
    if found.chosen is None:
        assert truth > 1 - RESOLUTION
        return
    fraction = found.trials[found.chosen].fraction
    assert curve(fraction) <= limit
    assert max(truth, NARROWEST) - 1e-4 <= fraction <= max(truth, NARROWEST) + RESOLUTION + 1e-9
    assert found.missed == ""


@pytest.mark.parametrize("limit", [0.1, 3.0])
def test_tries_are_few_begin_at_a_half_and_halve_what_is_left(limit):
    for threshold in (step / 100 for step in range(101)):
        seen = []
        over(lambda fraction, threshold=threshold: 0.0 if fraction >= threshold else 50.0, limit, seen)
        assert seen[0] == FIRST
        assert 5 <= len(seen) <= 6
        assert len(set(seen)) == len(seen)
        assert all(NARROWEST < fraction < 1 for fraction in seen)


def test_nothing_holds():
    found = over(lambda fraction: 40 - 30 * fraction, 1.0)
    assert found.chosen is None
    assert max(trial.fraction for trial in found.trials) >= 1 - RESOLUTION
    closest = max(found.trials, key=lambda trial: trial.fraction)
    assert f"{closest.left:.3f} of the MACs" in found.missed
    assert f"{closest.high:.2f} points" in found.missed
    assert "Nothing was cut" in found.missed


def test_everything_holds():
    found = over(lambda fraction: -2.0, 1.0)
    assert all(trial.high <= 1 for trial in found.trials)
    assert found.chosen == len(found.trials) - 1
    assert NARROWEST < found.trials[-1].fraction <= NARROWEST + RESOLUTION


def test_on_a_curve_that_is_not_monotone_the_cheapest_that_held_wins():
    """Fine-tuning may help a smaller network more: what was asked for and what was reached part, too."""
    left = {0.5: 0.45, 0.275: 0.28}
    highs = iter((0.4, 2.0, 0.9, 0.7, 3.0, 0.2))

    def attempt(fraction):
        high = next(highs)
        return Trial(fraction, left.get(fraction, 0.21), high, high, high)

    found = search(attempt, 1.0)
    cheapest = min(trial.left for trial in found.trials if trial.high <= 1.0)
    won = found.trials[found.chosen]
    assert (won.left, won.high) == (cheapest, 0.2), "of equally cheap tries the one that surely loses less"


def test_a_drop_at_the_limit_holds():
    assert over(lambda fraction: 1.0, 1.0).chosen is not None


@pytest.mark.parametrize("curve", [lambda fraction: 9 - 9 * fraction, lambda fraction: 50.0])
def test_plain_values_bring_it_back_with_its_verdicts(curve):
    found = over(curve, 2.0)
    values = found.to_json()
    assert [row["holds"] for row in values["trials"]] == [trial.high <= 2.0 for trial in found.trials]
    assert Search.from_json(values) == found
