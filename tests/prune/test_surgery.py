import copy
import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from secateur.common.errors import InputError, SecateurError
from secateur.network.load import load_model
from secateur.prune import surgery
from secateur.prune.plan import PruningPlan

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
