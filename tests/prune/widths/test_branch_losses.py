"""Losses of whole branches against real cuts, repaired by hand."""

from dataclasses import replace

import pytest
import torch

import secateur
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.evaluation import divergence
from secateur.prune.repair.reconstruction import reconstruct
from secateur.prune.widths import branch_losses
from secateur.prune.widths.branch_losses import BranchLosses, measure_branches
from secateur.prune.widths.measure_sensitivity import measure_sensitivity

PASSING = {
    "layer1.0.conv2": "layer1.0.bn2",
    "blocks.0.layers.6": "blocks.0.layers.7",
    "blocks.1.layers.6": "blocks.1.layers.7",
}
"""Branches whose own input is the other side of their sum, and the BatchNorm that ends each."""


@pytest.fixture
def case(tiny, network_of, noise_images):
    def build(name):
        network = network_of(tiny(name))
        return network, find_groups(network.module, network.example()), noise_images(80)

    return build


def without(network, groups, branches):
    """The network without branches; where the input passes, the BatchNorm behind gives zero, whatever is fitted before it."""
    cut = cut_of(groups, {group.name: range(group.units) for group in groups if group.branch in branches})
    small = replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))
    with torch.no_grad():
        for branch in set(branches) & set(PASSING):
            norm = small.module.get_submodule(PASSING[branch])
            norm.weight.zero_()
            norm.bias.zero_()
    return small


def loss_of(small, network, images):
    with torch.no_grad():
        return divergence(small.logits(images), network.logits(images))


@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("padded", ["layer1.0.conv2"]),
        ("padded", ["layer2.0.conv2"]),
        ("padded", ["layer3.0.conv2"]),
        ("padded", ["layer1.0.conv2", "layer3.0.conv2"]),
        ("padded", ["layer3.0.conv2", "layer2.0.conv2", "layer1.0.conv2"]),
        ("inverted", ["blocks.0.layers.6"]),
        ("inverted", ["blocks.1.layers.6", "blocks.0.layers.6"]),
    ],
)
def test_it_is_what_reconstruction_leaves_of_a_real_cut(name, branches, case):
    """At most ``DEPTH`` layers lie behind these branches, so that reconstruction fits the same."""
    network, groups, images = case(name)
    fixed, *_ = reconstruct(network, without(network, groups, branches), images.subset(torch.arange(40)))
    found = BranchLosses(network, groups, images).without(branches)
    assert found == pytest.approx(loss_of(fixed, network, images.pixels()[40:]), rel=1e-3, abs=1e-6)


def test_only_so_many_layers_are_fitted(case, monkeypatch):
    network, groups, images = case("padded")
    fixed, fits, _ = reconstruct(network, without(network, groups, ["layer1.0.conv2"]), images.subset(torch.arange(40)))
    monkeypatch.setattr(branch_losses, "DEPTH", 2)
    behind = [fit.layer for fit in fits if not fit.layer.startswith("layer1")]
    assert behind == ["layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2", "linear"]
    for name in ("layer3", "linear"):
        fixed.module.get_submodule(name).load_state_dict(network.module.get_submodule(name).state_dict())
    found = BranchLosses(network, groups, images).without(["layer1.0.conv2"])
    assert found == pytest.approx(loss_of(fixed, network, images.pixels()[40:]), rel=1e-3, abs=1e-6)


def test_the_order_of_measuring_and_the_memory_change_nothing(case, monkeypatch):
    network, groups, images = case("padded")
    losses = BranchLosses(network, groups, images)
    there = [losses.without([name]) for name in losses.names]
    back = [losses.without([name]) for name in reversed(losses.names)]
    assert there == pytest.approx(back[::-1], rel=1e-5)
    monkeypatch.setattr(branch_losses, "MEMORY_BYTES", 0)
    assert there == pytest.approx(list(measure_branches(network, groups, images).values()), rel=1e-4)


def test_sensitivities_hold_them_at_width_zero(case, scored):
    network, groups, images = case("padded")
    found = measure_sensitivity(network, groups, scored(groups), images)
    assert found.depth == branch_losses.DEPTH
    single = measure_branches(network, groups, images)
    ends = {group.name: single[group.branch] for group in groups if group.branch}
    assert {name: curve[0][1] for name, curve in found.curves.items() if curve[0][0] == 0} == pytest.approx(ends)
    assert {name: found.loss(name)(0) for name in ends} == pytest.approx(ends)


def test_a_trained_network_loses_less_than_with_its_direct_reader_fitted_alone():
    network = secateur.load_model("digits")
    images = secateur.load_images("digits", network.preprocessing).train.sample(400, seed=0)
    groups = find_groups(network.module, network.example())
    single = measure_branches(network, groups, images)
    assert len(single) > 1
    (batch, _), *_ = images.batches(400)
    fitted, judged = batch[:200], batch[200:]
    for branch, loss in single.items():
        small, seen = without(network, groups, [branch]), []
        handle = network.module.get_submodule(branch).register_forward_hook(
            lambda *call, seen=seen: seen.append(call[2])
        )
        with torch.no_grad():
            network.logits(fitted)
        handle.remove()
        small.module.get_submodule(branch).bias.data = seen[0].mean((0, 2, 3))
        assert loss < 0.5 * loss_of(small, network, judged), branch
