"""Several cuts as one: nothing may depend on whether units went at once or one after another."""

import dataclasses
import json

import pytest
import torch

from secateur.common.errors import InputError, SecateurError
from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.cut import apply_cut, cut_of, rest_of_cut
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import keep_all, obstacle, plan_pruning
from secateur.prune.reasons import explain_layer
from secateur.prune.rounds import combine
from secateur.prune.settings import BudgetSettings

TINY = ("padded", "inverted", "grouped", "dense", "gated", "chain", "plain")


def equal(first, second):
    """Same tensors by name, same class scores, bit for bit."""
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
    return True


def draw_scores(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: UnitScores(f"draw {seed}", torch.rand(group.units, generator=generator, dtype=torch.float64), ())
        for group in groups
        if not group.locked
    }


def cut_in_rounds(network, fractions, seed=0):
    """Plans and networks after each round, cut one out of the other; scores are drawn anew in every round."""
    groups, costs = find_groups(network.module, network.example()), measure_cost(network)
    current, plan, results = network, None, []
    for number, fraction in enumerate(fractions, 1):
        own = find_groups(current.module, network.example())
        found = measure_cost(current)
        factor = 1 if plan is None else costs.of({}).macs / found.of({}).macs
        budget = BudgetSettings(macs=fraction * factor, round_to=1)
        step = plan_pruning(own, draw_scores(own, seed + number), found, budget)
        plan = step if plan is None else combine(plan, step, groups, costs, fraction=fraction, number=number)
        current = surgery.cut(network, plan, current)
        results.append((plan, current))
    return groups, costs, results


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TINY)
def test_two_cuts_equal_one(tiny, random_units, name, seed):
    """Random units go, then more; the rest of the cut takes the first result to where the whole cut leads."""
    module, example = tiny(name, seed), torch.zeros(2, 3, 12, 12)
    groups = find_groups(module, example)
    whole = random_units(groups, seed, 0.6)
    early = {group: units[: seed * len(units) // 2] for group, units in whole.items()}
    first = apply_cut(module, cut_of(groups, early), example)
    rest = rest_of_cut(cut_of(groups, whole), cut_of(groups, early))
    assert equal(apply_cut(first, rest, example), apply_cut(module, cut_of(groups, whole), example))


@pytest.mark.parametrize("name", TINY)
def test_the_rest_counts_what_is_left(tiny, random_units, name):
    """Channel by channel: what the rest removes from the remaining ones is what the whole removes and the first did not."""
    module = tiny(name)
    groups = find_groups(module, torch.zeros(2, 3, 12, 12))
    whole = random_units(groups, 4, 0.7)
    full, done = cut_of(groups, whole), cut_of(groups, {group: units[::2] for group, units in whole.items()})
    rest = rest_of_cut(full, done)
    assert rest_of_cut(full, {}) == full
    assert rest_of_cut(full, full) == {}
    for layer, part in full.items():
        for side in ("out", "in"):
            width, removed = getattr(part, f"{side}_width"), getattr(part, f"{side}_removed")
            gone = getattr(done[layer], f"{side}_removed") if layer in done else ()
            left = [channel for channel in range(width or 0) if channel not in gone]
            now = getattr(rest[layer], f"{side}_removed") if layer in rest else ()
            assert {*gone, *(left[index] for index in now)} == set(removed)
            if now:
                assert getattr(rest[layer], f"{side}_width") == len(left)


@pytest.mark.parametrize("name", TINY)
def test_rounds_of_plans_cut_as_their_sum_does(tiny, network_of, name):
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


def test_scores_are_those_of_the_round_that_saw_a_unit_last(tiny, network_of):
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


def test_why_names_the_round_and_ranks_among_those_that_the_last_one_saw(tiny, network_of):
    network = network_of(tiny("chain"))
    groups, _, results = cut_in_rounds(network, (0.8, 0.6, 0.4))
    plan = results[-1][0]
    assert {gone for own in plan.groups for gone in own.rounds} == {0, 1, 2, 3}
    for own in plan.groups:
        if own.locked:
            continue
        seen = [unit for unit in range(own.units) if own.rounds[unit] in (0, 3)]
        order = sorted(seen, key=lambda unit, own=own: -own.scores[unit])
        for kernel, _, stays, why in explain_layer(plan, groups, own.name):
            assert stays == (kernel not in own.removed)
            if stays:
                place = order.index(kernel) + 1
                assert place <= own.kept
                assert f"unit {place} of {len(seen)} in round 3; {own.kept} stay" in why
            else:
                assert f"round {own.rounds[kernel]}" in why


def test_a_plan_of_rounds_comes_back_from_its_file(tiny, network_of, tmp_path):
    network = network_of(tiny("padded"))
    plan = cut_in_rounds(network, (0.7, 0.5))[2][-1][0]
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    values = json.loads((tmp_path / "plan.json").read_text())
    assert all(len(group["rounds"]) == group["units"] for group in values["groups"])
    assert "rounds" not in json.dumps(cut_in_rounds(network, (0.7,))[2][0][0].to_json())


def test_a_round_that_removes_nothing_still_counts(tiny, network_of):
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


def test_a_budget_that_rounds_miss_is_told_for_the_whole(tiny, network_of):
    plan = cut_in_rounds(network_of(tiny("padded")), (0.3, 0.0001))[2][-1][0]
    assert "macs 0.0001 was asked for; after 2 rounds" in plan.missed
    assert f"{plan.after.macs / plan.before.macs:.3f} is left" in plan.missed


def test_plans_that_do_not_follow_each_other_are_a_defect(tiny, network_of):
    network = network_of(tiny("padded"))
    groups, costs, ((first, _), (second, _)) = cut_in_rounds(network, (0.7, 0.5))
    with pytest.raises(SecateurError, match="units after a cut that left"):
        combine(first, first, groups, costs, fraction=0.5, number=2)
    headless = dataclasses.replace(first, groups=())
    with pytest.raises(SecateurError, match="is gone after a cut"):
        combine(second, headless, groups, costs, fraction=0.5, number=3)


def test_what_cannot_be_cut_is_known_before_anything_is_scored(tiny):
    groups = find_groups(tiny("padded"), torch.zeros(2, 3, 12, 12))
    assert obstacle(groups, "auto") == obstacle(groups, 16) == ""
    assert "round_to 32" in obstacle(groups, 32)
    shut = [dataclasses.replace(group, locked="somebody sat on it.") for group in groups]
    assert "somebody sat on it" in obstacle(shut, 1)


def test_a_cut_from_a_start_needs_the_same_network(tiny, network_of, plan_for):
    """A start that lost something else is refused by its widths, one that lost nothing is the network itself."""
    network = network_of(tiny("padded"))
    plan = plan_for(network, 0.5, round_to=1)
    assert equal(surgery.cut(network, plan, network).module, surgery.cut(network, plan).module)
    other = network_of(tiny("chain"))
    stranger = surgery.cut(other, plan_for(other, 0.5, round_to=1))
    with pytest.raises(InputError):
        surgery.cut(network, plan, stranger)


def test_rounds_on_a_network_that_was_cut_before(tiny, network_of, plan_for):
    """The cuts of an earlier run stay; those of the rounds are one."""
    network = network_of(tiny("inverted"))
    earlier = plan_for(network, 0.8, round_to=1)
    network = surgery.cut(network, earlier)
    for plan, current in cut_in_rounds(network, (0.8, 0.6))[2]:
        assert current.cuts == (earlier.cut, plan.cut)
        assert equal(current.module, surgery.cut(network, plan).module)


@pytest.mark.parametrize("name", [*TINY, "digits"])
@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.35])
def test_a_budget_in_bytes_is_kept_and_is_what_the_file_takes(tiny, network_of, plan_for, tmp_path, name, fraction):
    """Against safetensors: what it stores for parameters and running statistics, without its header."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    network = load_model("digits") if name == "digits" else network_of(tiny(name))
    plan = plan_for(network, fraction, "size")
    sizes = []
    for subject in (network, surgery.cut(network, plan)):
        tensors = dict(subject.module.named_parameters())
        running = {key: value for key, value in subject.module.named_buffers() if "running_" in key}
        save_file({key: value.detach().contiguous() for key, value in (tensors | running).items()}, tmp_path / "w")
        content = (tmp_path / "w").read_bytes()
        sizes.append(len(content) - 8 - int.from_bytes(content[:8], "little"))
        with safe_open(tmp_path / "w", "pt") as file:
            assert len(file.keys()) == len(tensors) + len(running)
    assert sizes == [plan.before.bytes, plan.after.bytes]
    assert plan.missed or sizes[1] <= fraction * sizes[0]
    assert plan.resource == "size"
