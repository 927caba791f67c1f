import copy

import pytest
from odd_networks import Halves, PartlyAdded

from secateur.network.channels.dependency_graph import follow_groups
from secateur.network.channels.locks import lock_overlaps, try_out
from secateur.network.rewrites.plain import mark
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.reasons import explain_layer
from secateur.prune.settings import BudgetSettings


def test_why_names_the_round_and_ranks_among_those_that_the_last_one_saw(tiny, network_of, cut_in_rounds):
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


@pytest.mark.parametrize("kind", [PartlyAdded, Halves])
def test_every_kernel_of_a_layer_is_explained_also_where_a_group_holds_some(kind, shake, network_of, scored):
    network = network_of(mark(shake(kind())))  # as it is, by torch-pruning's graph: a network that cannot be traced
    module, images = copy.deepcopy(network.module).requires_grad_(True), network.example(2)
    groups = try_out(module, lock_overlaps(follow_groups(module, images)), images)
    plan = plan_pruning(groups, scored(groups), measure_cost(network), BudgetSettings(macs=0.9))
    partly = {
        member.layer
        for group in groups
        for member in group.producers
        if len({channel for channels in member.channels for channel in channels}) < member.width
    }
    assert partly
    for layer in {layer for group in plan.groups for layer in group.layers}:
        rows = explain_layer(plan, groups, layer)
        assert [kernel for kernel, *_ in rows] == list(range(network.module.get_submodule(layer).weight.shape[0]))
        if layer in partly:
            assert all(stays for _, _, stays, _ in rows)
            assert any("stays whole" in why for *_, why in rows)
        assert not any(why.endswith(".") for *_, why in rows)  # who shows it ends the sentence
