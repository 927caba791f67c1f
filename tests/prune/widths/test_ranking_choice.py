from dataclasses import replace

import pytest
import torch

from secateur.common.errors import InputError
from secateur.explain.scores import KernelScores
from secateur.explain.unit_scores import score_units
from secateur.network.channels.follow import find_groups
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.measure_sensitivity import measure_sensitivity
from secateur.prune.widths.ranking_choice import OWN, best_orders, best_plan, choices, measure_orders, unit_orders
from secateur.prune.widths.sensitivity import Sensitivity


@pytest.fixture
def network(tiny, network_of):
    return network_of(tiny("padded"))


@pytest.fixture
def groups(network):
    return find_groups(network.module, network.example())


@pytest.fixture
def drawn(groups):
    """Seeded scores of every kernel."""

    def draw(method, seed, layers=None, members=()):
        generator = torch.Generator().manual_seed(seed)
        widths = {member.layer: member.width for group in groups for member in group.producers if not group.locked}
        scores = {name: torch.rand(width, generator=generator) for name, width in widths.items()}
        kept = {name: values for name, values in scores.items() if layers is None or name in layers}
        return KernelScores(method, "", kept, members={one.method: one for one in members})

    return draw


def curves(**losses):
    return Sensitivity({"a": tuple((k, loss) for k, loss in zip((2, 4, 8), (*losses["a"], 0.0), strict=True))}, 9, 9)


def test_the_order_that_loses_least_over_all_widths_decides():
    steep = curves(a=(1.0, 0.1))
    even = curves(a=(1.2, 0.01))  # 1.2 times as much at the narrowest, a tenth at the other
    found = best_orders({"steep": steep, "even": even})
    assert found.decided_by == {"a": "even"}
    assert found.curves["a"] == even.curves["a"]
    assert best_orders({"even": even, "steep": steep}).decided_by == {"a": "even"}
    assert best_orders({"one": steep, "other": steep}).decided_by == {"a": "one"}


def test_a_branch_gone_whole_tells_no_orders_apart():
    first = Sensitivity({"a": ((0, 5.0), (4, 0.2), (8, 0.0))}, 9, 9)
    second = Sensitivity({"a": ((0, 0.1), (4, 0.3), (8, 0.0))}, 9, 9)
    assert best_orders({"first": first, "second": second}).decided_by == {"a": "first"}


def test_a_ranking_that_lacks_a_group_takes_no_part_in_it():
    whole = Sensitivity({"a": ((4, 0.2), (8, 0.0)), "b": ((4, 0.2), (8, 0.0))}, 9, 9)
    partial = Sensitivity({"b": ((4, 0.1), (8, 0.0))}, 9, 9)
    assert best_orders({"whole": whole, "partial": partial}).decided_by == {"a": "whole", "b": "partial"}


def test_a_consensus_takes_the_best_order_of_each_group(network, groups, drawn, noise_images):
    images = noise_images(48)
    first, second = drawn("first", 1), drawn("second", 2)
    both = drawn("consensus", 3, members=(first, second))
    found = measure_orders(network, groups, both, images)
    alone = {
        one.method: measure_sensitivity(network, groups, score_units(groups, one), images)
        for one in (both, first, second)
    }
    assert set(found.decided_by) == {group.name for group in groups if not group.locked}
    assert len(set(found.decided_by.values())) > 1
    for group, method in found.decided_by.items():
        assert found.curves[group] == alone[method].curves[group]
        ratio = {name: sum(loss for _, loss in one.curves[group][:-1]) for name, one in alone.items()}
        assert ratio[method] <= max(ratio.values())
    known = choices(groups, both, found)
    assert list(known) == [OWN, "consensus", "first", "second"]
    assert known[OWN].sensitivity == found
    for name in list(known)[1:]:
        assert known[name].sensitivity.curves == alone[name].curves
        assert {units.method for units in known[name].units.values()} == {name}
    units = known[OWN].units
    for group, method in found.decided_by.items():
        assert units[group].method == method
        expected = score_units(groups, {"consensus": both, "first": first, "second": second}[method])[group]
        assert torch.equal(units[group].values, expected.values)


def test_one_ranking_is_measured_as_ever(network, groups, drawn, noise_images):
    images, scores = noise_images(32), drawn("only", 1)
    found = measure_orders(network, groups, scores, images)
    assert found == measure_sensitivity(network, groups, score_units(groups, scores), images)
    assert not found.decided_by
    (choice,) = choices(groups, scores, found).values()
    assert choice.sensitivity == found
    assert choice.units.keys() == {group.name for group in groups if not group.locked}


def test_a_member_without_a_group_is_left_out_of_it(groups, drawn):
    some = next(group for group in groups if not group.locked)
    partial = drawn("partial", 1, layers={member.layer for member in some.producers})
    orders = unit_orders(groups, drawn("whole", 2, members=(partial,)))
    assert set(orders["partial"]) == {some.name}
    with pytest.raises(InputError, match="scored none of"):
        unit_orders(groups, partial)


def test_where_a_member_ranks_nothing_the_consensus_does(groups, drawn):
    some = next(group for group in groups if not group.locked)
    partial = drawn("partial", 1, layers={member.layer for member in some.producers})
    known = choices(groups, drawn("whole", 2, members=(partial,)), None)
    assert list(known) == ["whole", "partial"], "nothing was measured that a group could go by"
    assert {group: units.method for group, units in known["partial"].units.items()} == {
        group.name: "partial" if group is some else "whole" for group in groups if not group.locked
    }


@pytest.fixture
def plans(network, groups, drawn):
    """Three plans to half of the MACs by different orders, one that cuts as the first does, and one that missed."""
    costs = measure_cost(network)

    def of(seed):
        return plan_pruning(groups, score_units(groups, drawn("drawn", seed)), costs, BudgetSettings(macs=0.5))

    made = {"first": of(1), "second": of(2), "again": of(1), "third": of(3)}
    return {**made, "missed": replace(of(4), missed="by far")}


def test_the_plan_whose_cut_diverges_least_goes_on(plans, tmp_path):
    lost, asked = {"first": 0.3, "second": 0.2, "third": 0.2}, []

    def divergence(plan, progress):
        asked.append(next(name for name, one in plans.items() if one.cut == plan.cut))
        return lost[asked[-1]]

    found = best_plan(plans, divergence)
    assert asked == ["first", "second", "third"], (
        "what cuts the same is measured once; what missed counts only where all do"
    )
    assert (found.order, found.cut) == ("second", plans["second"].cut)
    assert found.tried == {"first": 0.3, "second": 0.2, "again": 0.3, "third": 0.2}
    found.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == found


def test_where_all_plans_miss_the_least_divergent_of_them_goes_on(plans):
    missed = {name: replace(plans[name], missed="by far") for name in ("first", "second")}
    assert best_plan(missed, lambda plan, progress: float(plan.cut == plans["first"].cut)).order == "second"


def test_plans_that_cut_the_same_are_not_tried(plans):
    def divergence(plan, progress):
        raise AssertionError

    assert best_plan({name: plans[name] for name in ("first", "again")}, divergence) is plans["first"]
    assert best_plan({"second": plans["second"]}, divergence) is plans["second"]


def test_what_decided_is_saved_with_the_curves(tmp_path):
    found = best_orders({"one": curves(a=(1.0, 0.1)), "other": curves(a=(0.5, 0.1))})
    found.save(tmp_path / "sensitivity.json")
    assert Sensitivity.load(tmp_path / "sensitivity.json") == found
