import copy
import dataclasses
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from secateur.common.errors import InputError, SecateurError
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.measure_sensitivity import measure_sensitivity
from secateur.prune.widths.sensitivity import Sensitivity

TINY = ("padded", "inverted", "grouped", "dense", "gated", "chain", "plain")


@pytest.mark.parametrize("name", [*TINY, "digits"])
def test_the_cut_costs_what_the_plan_says_and_spares_the_original(tiny, network_of, plan_for, name):
    network = load_model("digits") if name == "digits" else network_of(tiny(name))
    state = copy.deepcopy(network.module.state_dict())
    x = network.example()
    before = network.logits(x)
    plan = plan_for(network, round_to=1)
    pruned = surgery.cut(network, plan)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pruned.module(network.example(1))
    assert counter.get_total_flops() // 2 == plan.after.macs <= plan.before.macs / 2
    assert sum(parameter.numel() for parameter in pruned.module.parameters()) == plan.after.parameters
    assert torch.equal(network.logits(x), before)
    assert state.keys() == network.module.state_dict().keys()
    assert all(torch.equal(value, network.module.state_dict()[key]) for key, value in state.items())
    assert (network.cuts, pruned.cuts) == ((), (plan.cut,))
    assert pruned.logits(x).shape == before.shape


@pytest.mark.parametrize(("own", "others"), [("chain", "padded"), ("padded", "chain"), ("dense", "inverted")])
def test_another_networks_plan_is_refused(tiny, network_of, plan_for, own, others):
    with pytest.raises(InputError, match="plan"):
        surgery.cut(network_of(tiny(own)), plan_for(network_of(tiny(others))))


def test_a_plan_is_not_applied_twice(tiny, network_of, plan_for):
    network = network_of(tiny("padded"))
    plan = plan_for(network)
    with pytest.raises(InputError, match="channels, the plan was made for"):
        surgery.cut(surgery.cut(network, plan), plan)


def test_a_promise_that_is_not_kept_is_a_defect(tiny, network_of, plan_for):
    network = network_of(tiny("chain"))
    plan = plan_for(network)
    liar = dataclasses.replace(plan, after=dataclasses.replace(plan.after, macs=plan.after.macs - 1))
    with pytest.raises(SecateurError, match="defect"):
        surgery.cut(network, liar)


def test_a_plan_from_a_file_cuts_the_same(tiny, network_of, plan_for, tmp_path):
    network = network_of(tiny("gated"))
    plan = plan_for(network)
    plan.save(tmp_path / "plan.json")
    first, second = surgery.cut(network, plan), surgery.cut(network, PruningPlan.load(tmp_path / "plan.json"))
    x = network.example()
    assert torch.equal(first.logits(x), second.logits(x))


def test_a_cut_from_a_start_needs_the_same_network(tiny, network_of, plan_for, equal):
    """A start that lost something else is refused by its widths, one that lost nothing is the network itself."""
    network = network_of(tiny("padded"))
    plan = plan_for(network, 0.5, round_to=1)
    assert equal(surgery.cut(network, plan, network).module, surgery.cut(network, plan).module)
    other = network_of(tiny("chain"))
    stranger = surgery.cut(other, plan_for(other, 0.5, round_to=1))
    with pytest.raises(InputError):
        surgery.cut(network, plan, stranger)


@pytest.fixture
def folder_without_a_branch(networks_file, tmp_path, scored):
    """A network that lost its second branch, as secateur saved it."""
    network = load_model(ModelSettings(model=f"{networks_file}:padded"))
    groups = find_groups(network.module, network.example())
    curves = {g.name: ((1, 80.0), (g.units, 0.0)) for g in groups if not g.locked}
    curves["layer2.0.conv1"] = ((0, 1e-6), (1, 1e-6), (16, 0.0))
    plan = plan_pruning(
        groups, scored(groups), measure_cost(network), BudgetSettings(macs=0.75), Sensitivity(curves, 1, 1)
    )
    assert next(group for group in plan.groups if group.name == "layer2.0.conv1").kept == 0
    surgery.save(surgery.cut(network, plan), plan, tmp_path)
    return tmp_path, network, groups, plan


def test_a_network_without_a_branch_is_pruned_again(folder_without_a_branch, noise_images, scored):
    network = load_model(str(folder_without_a_branch[0]))
    groups = find_groups(network.module, network.example())
    scores = scored(groups)
    sensitivity = measure_sensitivity(network, groups, scores, noise_images(32))
    plan = plan_pruning(groups, scores, measure_cost(network), BudgetSettings(macs=0.5), sensitivity)
    fixed, report = repair(network, surgery.cut(network, plan), noise_images(32), "reconstruct")
    assert report.fits
    with torch.no_grad():
        assert torch.isfinite(fixed.logits(fixed.example(4))).all()


def test_a_second_round_after_a_branch_is_saved_and_read(folder_without_a_branch, noise_images, tmp_path):
    _, network, groups, plan = folder_without_a_branch
    small, _ = repair(network, surgery.cut(network, plan), noise_images(16), "reconstruct")
    stream = next(group for group in groups if group.name == "conv1")
    removed = {group.name: group.removed for group in plan.groups} | {stream.name: (0, 1)}
    both = replace(plan, groups=tuple(replace(g, removed=tuple(removed[g.name])) for g in plan.groups))
    both = both.revised(groups, measure_cost(network))
    again, _ = repair(network, surgery.cut(network, both, small), noise_images(16), "mean", before=small)
    folder = tmp_path / "again"
    folder.mkdir()
    surgery.save(again, both, folder)
    found = load_model(str(folder))
    with torch.no_grad():
        assert torch.equal(found.logits(found.example(3)), again.logits(again.example(3)))
