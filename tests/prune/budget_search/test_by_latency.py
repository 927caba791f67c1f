import pytest

from secateur.prune.budget_search.by_latency import (
    MOST_TRIES,
    ROOM,
    TOLERANCE,
    LatencyOutcome,
    LatencySearch,
    LatencyTry,
    search_latency,
)
from secateur.prune.latency_table import LatencyTable


def machine(truth, step=0.0, floor=0.0):
    """A planner that reaches the target in steps down to a floor, and a machine that takes ``truth`` of what was planned."""
    seen = []

    def attempt(target):
        planned = max(floor, (target // step) * step if step else target)
        measured = truth(planned)
        seen.append(target)
        return LatencyTry(target, planned, measured, 0.99 * measured, 1.01 * measured, planned == floor > 0)

    return attempt, seen


@pytest.mark.parametrize("asked", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    "truth",
    [lambda p: p, lambda p: 0.3 + 0.7 * p, lambda p: 1.3 * p - 0.3, lambda p: p**2, lambda p: p**0.5],
    ids=["exact", "fixed part", "too hopeful", "square", "root"],
)
def test_whatever_the_table_got_wrong_the_measured_latency_fits(truth, asked):
    attempt, seen = machine(truth)
    found = search_latency(attempt, asked)
    if truth(0.05) > asked:  # out of reach: the fastest of the tries, and why it is too slow
        assert found.best.measured == min(one.measured for one in found.tries) > asked
        assert f"(latency {asked:.3f}) was asked for" in found.missed(found.best.measured)
        return
    assert len(seen) <= MOST_TRIES
    assert asked * (1 - 2 * ROOM) <= found.best.measured <= asked
    assert found.missed(found.best.measured) == ""
    assert found.tries[0].target == asked


def test_coarse_steps_give_the_slowest_that_is_fast_enough():
    attempt, seen = machine(lambda p: 0.2 + 0.8 * p, step=0.15)
    found = search_latency(attempt, 0.7)
    measured = [one.measured for one in found.tries]
    assert found.best.measured == max(value for value in measured if value <= 0.7)
    assert len(set(seen)) == len(seen), "no target is tried twice"


def test_a_floor_above_the_asked_latency_ends_the_search_and_is_named():
    attempt, seen = machine(lambda p: 0.5 + 0.5 * p, floor=0.4)
    found = search_latency(attempt, 0.3)
    assert len(seen) == 1
    assert found.best.narrowest
    assert "(latency 0.700) was measured, which is the floor" in found.missed(found.best.measured)


def test_where_cutting_does_not_help_the_fastest_is_kept():
    attempt, seen = machine(lambda p: 1.05)
    found = search_latency(attempt, 0.5)
    assert len(seen) == MOST_TRIES
    assert seen == sorted(seen, reverse=True)
    assert "more than 5% slower" in found.missed(1.05)


def test_a_cliff_is_searched_between_the_plans_on_either_side():
    """Plans above 0.55 leave the runtime's fast path and are slower than the baseline."""
    attempt, _ = machine(lambda p: p if p <= 0.55 else 1.08)
    found = search_latency(attempt, 0.7)
    assert 0.45 <= found.best.measured <= 0.55
    assert sum(one.measured <= 0.7 for one in found.tries) >= 2, "it goes on from the first plan that is fast enough"


def test_the_surer_of_two_measurements_is_judged_with_a_stated_tolerance():
    search = LatencySearch(0.7, (LatencyTry(0.7, 0.69, 0.68, 0.66, 0.70),), 0)
    outcome = LatencyOutcome(search, LatencyTable({}, 0.0, {"batch": 1, "provider": "cpu"}))
    assert outcome.judged(0.72, 0.715, 0.725) == 0.72
    assert outcome.judged(0.92, 0.7, 1.4) == 0.68
    assert search.missed(0.7 * (1 + TOLERANCE)) == ""
    assert search.missed(0.7 * (1 + TOLERANCE) + 1e-6) != ""
    assert LatencySearch.from_json(search.to_json()) == search
