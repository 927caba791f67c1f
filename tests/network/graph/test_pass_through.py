"""Removed branches in a traced network, and the network without the sums that add nothing."""

import pytest
import torch
from torch import nn

from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.graph.leaf_modules import Add
from secateur.network.graph.pass_through import (
    adds_zero,
    holding_zeros,
    removed_branches,
    set_to_zero,
    without_zero_sums,
)
from secateur.network.graph.trace import trace

EXAMPLE = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def without(tiny, large):
    """A network without the branches that end in some layers."""

    def build(name, layers):
        module = tiny(name) if name == "padded" else large(name)
        groups = find_groups(module, EXAMPLE)
        removed = {group.name: range(group.units) for group in groups if group.branch in layers}
        small = apply_cut(module, cut_of(groups, removed), EXAMPLE).eval()
        for layer in layers:
            nn.init.normal_(small.get_submodule(layer).bias, 0, 0.3, generator=torch.Generator().manual_seed(1))
        return small

    return build


CASES = {
    "padded": {"layer1.0.conv2": True, "layer2.0.conv2": False},
    "resnet18": {"layer1.1.conv2": True, "layer2.0.conv2": False, "layer3.1.conv2": True},
    "mobilenet_v2": {"features.3.conv.2": True, "features.8.conv.2": True},
    "efficientnet_b0": {"features.2.1.block.3.0": True},
}


def count(view, kind):
    calls = [view.get_submodule(node.target) for node in view.graph.nodes if node.op == "call_module"]
    return sum(isinstance(module, kind) for module in calls)


@pytest.mark.parametrize("name", CASES)
def test_removed_branches(without, name):
    view = trace(without(name, list(CASES[name])), EXAMPLE)
    found = removed_branches(view)
    assert {branch.layer: branch.identity for branch in found} == CASES[name]
    assert all(branch.norm and not adds_zero(view, branch) for branch in found)
    assert not removed_branches(trace(without(name, []), EXAMPLE))


@pytest.mark.parametrize("name", CASES)
def test_sums_with_zero_go_and_outputs_stay(without, name):
    small = without(name, list(CASES[name]))
    branches = removed_branches(trace(small, EXAMPLE))
    for branch in branches:
        if branch.identity:
            set_to_zero(small, branch)
    assert [adds_zero(small, branch) for branch in branches] == [branch.identity for branch in branches]
    plain, view = without_zero_sums(small, EXAMPLE), trace(small, EXAMPLE)
    passing = sum(branch.identity for branch in branches)
    assert count(plain, Add) == count(view, Add) - passing
    activated = 2 * passing if name in ("padded", "resnet18") else 0  # in the branch, and behind the sum
    assert count(plain, nn.ReLU) == count(view, nn.ReLU) - activated
    with torch.no_grad():
        assert torch.equal(plain(EXAMPLE), small(EXAMPLE))
    state = small.state_dict()
    plain.load_state_dict(state)
    assert plain.state_dict().keys() == state.keys()


def test_a_network_without_removed_branches_is_returned(tiny):
    module = tiny("padded")
    assert without_zero_sums(module, EXAMPLE) is module


def test_constants_that_are_not_zero_stay(without):
    small = without("padded", ["layer1.0.conv2"])
    assert count(without_zero_sums(small, EXAMPLE), Add) == 3
    nn.init.zeros_(small.get_submodule("layer1.0.conv2").bias)  # the norm behind it still adds something
    assert count(without_zero_sums(small, EXAMPLE), Add) == 3


def test_zeros_are_held_in_training(without):
    small = without("padded", ["layer1.0.conv2", "layer2.0.conv2"])
    branch, other = removed_branches(trace(small, EXAMPLE))
    set_to_zero(small, branch)
    with holding_zeros(small, EXAMPLE):
        optimizer = torch.optim.SGD(small.train().parameters(), 0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            small(EXAMPLE).square().sum().backward()
            optimizer.step()
    assert adds_zero(small.eval(), branch)
    assert not adds_zero(small, other)
    assert all(parameter.requires_grad for parameter in small.parameters())
    optimizer.zero_grad()
    small(EXAMPLE).square().sum().backward()
    optimizer.step()
    assert not adds_zero(small, branch)
