"""Several cuts as one: nothing may depend on whether units went at once or one after another."""

import dataclasses

import pytest

from secateur.common.errors import SecateurError
from secateur.network.channels.cut import cut_of
from secateur.network.channels.follow import find_groups
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.planning import keep_all, plan_pruning
from secateur.prune.rounds import combine
from secateur.prune.settings import BudgetSettings

TINY = ("padded", "inverted", "grouped", "dense", "gated", "chain", "plain")


@pytest.mark.parametrize("name", TINY)
def test_rounds_of_plans_cut_as_their_sum_does(tiny, network_of, name, cut_in_rounds, equal):
    network = network_of(tiny(name))
    groups, costs, results = cut_in_rounds(network, (0.8, 0.6, 0.4))
    before = costs.of({})
    gone = {group.name: set() for group in groups}
    for number, ((plan, current), fraction) in enumerate(zip(results, (0.8, 0.6, 0.4), strict=True), 1):
        assert equal(current.module, surgery.cut(network, plan).module)
        assert plan.after == measure_cost(current).of({}) == costs.of_cut(plan.cut)
        assert (plan.before, plan.fraction) == (before, fraction)
        assert plan.missed or plan.after.macs <= fraction * before.macs
        assert current.cuts == (plan.cut,)
        for group in plan.groups:
            assert gone[group.name] <= set(group.removed)
            new = set(group.removed) - gone[group.name]
            gone[group.name] |= new
            if number > 1:
                assert {unit for unit, gone_in in enumerate(group.rounds) if gone_in == number} == new
                assert [unit for unit, gone_in in enumerate(group.rounds) if gone_in] == sorted(gone[group.name])
            alone = costs.of_cut(cut_of(groups, {group.name: group.removed}))
            assert group.saves == before - alone


def test_scores_are_those_of_the_round_that_saw_a_unit_last(tiny, network_of, draw_scores, cut_in_rounds):
    network = network_of(tiny("chain"))
    _, _, ((first, small), (second, _)) = cut_in_rounds(network, (0.75, 0.5))
    drawn = draw_scores(find_groups(small.module, network.example()), 2)
    for before, after in zip(first.groups, second.groups, strict=True):
        if after.locked:
            continue
        left = iter(drawn[after.name].values.tolist())
        for unit in range(after.units):
            wanted = before.scores[unit] if unit in before.removed else next(left)
            assert after.scores[unit] == pytest.approx(wanted, rel=1e-7)
        assert after.decided_by == "draw 2"


def test_a_round_that_removes_nothing_still_counts(tiny, network_of, draw_scores):
    network = network_of(tiny("chain"))
    groups, costs = find_groups(network.module, network.example()), measure_cost(network)
    budget = BudgetSettings(macs=0.5, round_to=1)
    first = keep_all(groups, draw_scores(groups, 0), costs, budget)
    assert (first.cut, first.after, first.missed, first.fraction) == ({}, costs.of({}), "", 1.0)
    second = combine(
        first, keep_all(groups, draw_scores(groups, 1), costs, budget), groups, costs, fraction=1, number=2
    )
    assert {gone for group in second.groups for gone in group.rounds} == {0}
    step = plan_pruning(groups, draw_scores(groups, 2), costs, budget)
    third = combine(second, step, groups, costs, fraction=0.5, number=3)
    assert {gone for group in third.groups for gone in group.rounds} == {0, 3}
    assert third.cut == step.cut


def test_a_missed_budget_of_rounds_is_reported_for_the_whole(tiny, network_of, cut_in_rounds):
    plan = cut_in_rounds(network_of(tiny("padded")), (0.3, 0.0001))[2][-1][0]
    assert "macs 0.0001 was asked for; after 2 rounds" in plan.missed
    assert f"{plan.after.macs / plan.before.macs:.3f} is left" in plan.missed


def test_plans_that_do_not_follow_each_other_are_a_defect(tiny, network_of, cut_in_rounds):
    network = network_of(tiny("padded"))
    groups, costs, ((first, _), (second, _)) = cut_in_rounds(network, (0.7, 0.5))
    with pytest.raises(SecateurError, match="units after a cut that left"):
        combine(first, first, groups, costs, fraction=0.5, number=2)
    headless = dataclasses.replace(first, groups=())
    with pytest.raises(SecateurError, match="is gone after a cut"):
        combine(second, headless, groups, costs, fraction=0.5, number=3)


def test_rounds_on_a_network_that_was_cut_before(tiny, network_of, plan_for, cut_in_rounds, equal):
    """The cuts of an earlier run stay; those of the rounds are one."""
    network = network_of(tiny("inverted"))
    earlier = plan_for(network, 0.8, round_to=1)
    network = surgery.cut(network, earlier)
    for plan, current in cut_in_rounds(network, (0.8, 0.6))[2]:
        assert current.cuts == (earlier.cut, plan.cut)
        assert equal(current.module, surgery.cut(network, plan).module)
