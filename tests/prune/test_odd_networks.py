"""Networks of kinds that once broke a measurement, a fit or a plan."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.reasons import explain_layer
from secateur.prune.repair.reconstruction import reconstruct
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.measure_sensitivity import measure_sensitivity
from secateur.prune.widths.sensitivity import Sensitivity


def branch(width, hidden):
    return nn.Sequential(
        nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(),
        nn.Conv2d(hidden, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
    )  # fmt: skip


class Odd(nn.Module):
    """A stem, something between, and a head of four classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.build()
        self.head = nn.Linear(16, 4)

    def build(self):
        self.f, self.g, self.h = branch(16, 24), branch(16, 24), branch(16, 24)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.stem(x)).mean((2, 3)))


class Parallel(Odd):
    def between(self, x):
        x = x + self.h(x)
        return F.relu(self.f(x) + self.g(x))


class ChannelsLast(Odd):
    def build(self):
        self.one, self.two = nn.Linear(16, 40), nn.Linear(40, 16)

    def between(self, x):
        return x + self.two(F.gelu(self.one(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class GlobalContext(Odd):
    def build(self):
        self.one, self.two = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 16, 1)
        self.three, self.four = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 1, 3, padding=1)

    def between(self, x):
        x = x + self.two(F.relu(self.one(x.mean((2, 3), keepdim=True))))
        return x + self.four(F.relu(self.three(x)))


class InPlace(Odd):
    def between(self, x):
        y = self.f(x)
        x = x.mul_(0.5)
        x = F.relu(y + x)
        return F.relu(self.g(x) + x)


class Plain(InPlace):
    def between(self, x):
        y = self.f(x)
        x = x * 0.5
        x = F.relu(y + x)
        return F.relu(self.g(x) + x)


class Dropping(Odd):
    def build(self):
        super().build()
        self.path, self.drop = nn.Identity(), nn.Dropout(0.2)

    def between(self, x):
        x = x + self.drop(self.path(self.f(x)))
        return x + self.path(self.g(x))


class PartlyAdded(Odd):
    """RexNet's: blocks add their input to some of the channels that they make."""

    def build(self):
        self.wide, self.wider = nn.Conv2d(16, 20, 3, padding=1), nn.Conv2d(20, 24, 3, padding=1)
        self.narrow = nn.Conv2d(24, 16, 3, padding=1)

    def between(self, x):
        for block in (self.wide, self.wider):
            made, width = block(x), x.shape[1]
            x = F.relu(torch.cat([made[:, :width] + x, made[:, width:]], 1))
        return self.narrow(x)


class Halves(Odd):
    """MixNet's: two layers make halves that a depthwise one takes together and two others take apart."""

    def build(self):
        self.left, self.right = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.one, self.two = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1)

    def between(self, x):
        x = F.relu(self.depthwise(torch.cat([self.left(x), self.right(x)], 1)))
        one, two = torch.split(x, [12, 12], 1)
        return torch.cat([self.one(one), self.two(two)], 1)


def seeded(kind, shake):
    torch.manual_seed(0)
    return shake(kind())


def scored(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        g.name: UnitScores("seeded", torch.rand(g.units, generator=generator, dtype=torch.float64), (g.name,))
        for g in groups
        if not g.locked
    }


@pytest.fixture
def cut_by_half(network_of):
    def build(network):
        groups = find_groups(network.module, network.example())
        cut = cut_of(groups, {g.name: range(g.units // 2) for g in groups if not g.locked})
        return replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))

    return build


@pytest.mark.parametrize("kind", [Parallel, ChannelsLast, GlobalContext, InPlace, Dropping])
def test_they_are_measured_and_fitted(kind, shake, network_of, noise_images, cut_by_half):
    network, images = network_of(seeded(kind, shake)), noise_images(48)
    groups = find_groups(network.module, network.example())
    found = measure_sensitivity(network, groups, scored(groups), images)
    assert set(found.curves) == {group.name for group in groups if not group.locked}
    fixed, fits, _ = reconstruct(network, cut_by_half(network), images)
    assert all(fit.after <= fit.before + 1e-6 for fit in fits)
    with torch.no_grad():
        assert torch.isfinite(fixed.logits(fixed.example(4))).all()


def test_what_writes_in_place_is_fitted_as_what_does_not(shake, network_of, noise_images, cut_by_half):
    one, two = (network_of(seeded(kind, shake)) for kind in (InPlace, Plain))
    two.module.load_state_dict(copy.deepcopy(one.module.state_dict()))
    found = [
        reconstruct(network, cut_by_half(network), noise_images(32))[0].module.state_dict() for network in (one, two)
    ]
    for first, second in zip(found[0].values(), found[1].values(), strict=True):
        assert torch.allclose(first, second, atol=1e-5)


def test_a_join_is_seen_behind_what_only_training_changes(shake, network_of, noise_images, cut_by_half):
    network = network_of(seeded(Dropping, shake))
    _, fits, _ = reconstruct(network, cut_by_half(network), noise_images(16))
    joined = {fit.layer: fit.joined for fit in fits}
    assert joined["f.3"]
    assert joined["g.3"]
    assert not joined["f.0"]


def test_one_side_of_a_join_stays(shake, network_of):
    """Without both nothing of the image would reach the head."""
    groups = find_groups(seeded(Parallel, shake), torch.zeros(2, 3, 12, 12))
    assert {group.branch for group in groups if group.branch} in ({"f.3", "h.3"}, {"g.3", "h.3"})


@pytest.mark.parametrize("kind", [PartlyAdded, Halves])
def test_every_kernel_of_a_layer_is_explained_also_where_a_group_holds_some(kind, shake, network_of):
    network = network_of(seeded(kind, shake))
    groups = find_groups(network.module, network.example(2))
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


def chain(*widths):
    torch.manual_seed(0)
    layers, inputs = [], 3
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 4))


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.3])
def test_an_alignment_wider_than_a_group_leaves_it_whole(network_of, fraction):
    network = network_of(chain(12, 64, 64))
    groups = find_groups(network.module, network.example())
    curves = {g.name: ((g.units // 4, 5.0), (g.units, 0.0)) for g in groups if not g.locked}
    budget = BudgetSettings(macs=fraction, round_to=16)
    plan = plan_pruning(groups, scored(groups), measure_cost(network), budget, Sensitivity(curves, 1, 1))
    assert plan.groups[0].kept == 12
    assert all(group.aligned for group in plan.groups)
    assert plan.after.macs <= fraction * plan.before.macs


@pytest.mark.parametrize("fraction", [0.9, 0.7, 0.5])
def test_a_flat_curve_does_not_take_the_plan_far_below_its_budget(network_of, fraction):
    network = network_of(chain(64, 64))
    groups = find_groups(network.module, network.example())
    curves = {"0": ((8, 0.5), (16, 0.5), (32, 0.5), (48, 0.5), (64, 0.0)), "2": ((8, 50.0), (64, 0.0))}
    costs = measure_cost(network)
    plan = plan_pruning(groups, scored(groups), costs, BudgetSettings(macs=fraction), Sensitivity(curves, 1, 1))
    step = costs.of({}).macs * 8 / 64
    assert fraction * plan.before.macs - step <= plan.after.macs <= fraction * plan.before.macs


@pytest.fixture
def folder_without_a_branch(networks_file, tmp_path):
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


def test_a_network_without_a_branch_is_pruned_again(folder_without_a_branch, noise_images):
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
