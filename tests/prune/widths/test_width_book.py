import itertools

import numpy as np
import pytest
import torch
from torch import nn

from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.follow import find_groups
from secateur.network.channels.group import ChannelGroup, Member
from secateur.prune.cost import Cost, CostModel, LayerShape, measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.sensitivity import Sensitivity


@pytest.mark.parametrize("round_to", ["auto", 1, 2, 4, 8])
@pytest.mark.parametrize("name", ["digits", "padded", "grouped", "resnext", "mobilenet_v2"])
def test_widths_are_aligned_or_whole_and_the_lowest_scores_go(inputs, name, round_to):
    groups, scores, costs = inputs(name)
    by_name = {group.name: group for group in groups}
    for fraction in (0.7, 0.45):
        plan = plan_pruning(groups, scores, costs, BudgetSettings(macs=fraction, round_to=round_to))
        for own in plan.groups:
            group = by_name[own.name]
            if own.locked:
                assert own.removed == ()
                continue
            assert 1 <= own.kept <= group.units
            if own.removed:
                width = sum(
                    len(channels) for unit, channels in enumerate(group.members[0].channels) if unit not in own.removed
                )
                if round_to != "auto":
                    assert width % round_to == 0
                values = scores[own.name].values.tolist()
                kept = [values[unit] for unit in range(group.units) if unit not in own.removed]
                assert max(values[unit] for unit in own.removed) <= min(kept)
            assert own.aligned


def test_automatic_alignment_follows_the_width(inputs):
    """32 where 256 or more channels stand, 16 from 128, eights from 64, fours from 32, twos from 16, ones below."""
    for name in ("digits", "resnet18", "padded"):
        groups, scores, costs = inputs(name)
        plan = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.5))
        for group, own in zip(groups, plan.groups, strict=True):
            if not own.locked:
                width = group.members[0].width
                assert own.step == next((size for size in (32, 16, 8, 4, 2) if width >= 8 * size), 1)


def chain_of_two(first, second):
    """A made-up network of two inner groups and a head: conv a (3 -> first), conv b (first -> second), linear head."""

    def whole(layer, side, kind, width):
        return Member(layer, side, kind, width, tuple((channel,) for channel in range(width)))

    groups = (
        ChannelGroup("a", (whole("a", "out", "conv", first), whole("b", "in", "conv", first))),
        ChannelGroup("b", (whole("b", "out", "conv", second), whole("head", "in", "linear", second))),
        ChannelGroup("head", (whole("head", "out", "linear", 4),), "its units are the classes of the head."),
    )
    layers = {
        "a": LayerShape(first, 3, 1, 9, 64, 1),
        "b": LayerShape(second, first, 1, 9, 64, 1),
        "head": LayerShape(4, second, 1, 1, 1, 1),
    }
    return groups, CostModel(layers, Cost(0, 0, 0))


@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.4, 0.2])
def test_no_wider_network_of_uniform_shares_fits(fraction):
    """Brute force over all widths: nothing that keeps at least as much of every group, and more of one, fits."""
    groups, costs = chain_of_two(12, 10)
    scores = {name: UnitScores("x", torch.arange(float(units)), ()) for name, units in (("a", 12), ("b", 10))}
    plan = plan_pruning(groups, scores, costs, BudgetSettings(macs=fraction, round_to=1))

    def macs(a, b):
        return 64 * 9 * (3 * a + a * b) + 4 * b

    kept = {own.name: own.kept for own in plan.groups}
    assert plan.after.macs == macs(kept["a"], kept["b"])
    fitting = [(a, b) for a in range(1, 13) for b in range(1, 11) if macs(a, b) <= fraction * macs(12, 10)]
    assert (kept["a"], kept["b"]) in fitting
    assert not [1 for a, b in fitting if a >= kept["a"] and b >= kept["b"] and (a, b) != (kept["a"], kept["b"])]
    assert abs(kept["a"] / 12 - kept["b"] / 10) < 0.2, "shares are uniform"


def chain(*widths):
    torch.manual_seed(0)
    layers, inputs = [], 3
    for width in widths:
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 4))


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.3])
def test_an_alignment_wider_than_a_group_leaves_it_whole(network_of, fraction, scored):
    network = network_of(chain(12, 64, 64))
    groups = find_groups(network.module, network.example())
    curves = {g.name: ((g.units // 4, 5.0), (g.units, 0.0)) for g in groups if not g.locked}
    budget = BudgetSettings(macs=fraction, round_to=16)
    plan = plan_pruning(groups, scored(groups), measure_cost(network), budget, Sensitivity(curves, 1, 1))
    assert plan.groups[0].kept == 12
    assert all(group.aligned for group in plan.groups)
    assert plan.after.macs <= fraction * plan.before.macs


@pytest.mark.parametrize("fraction", [0.9, 0.7, 0.5])
def test_a_flat_curve_does_not_take_the_plan_far_below_its_budget(network_of, fraction, scored):
    network = network_of(chain(64, 64))
    groups = find_groups(network.module, network.example())
    curves = {"0": ((8, 0.5), (16, 0.5), (32, 0.5), (48, 0.5), (64, 0.0)), "2": ((8, 50.0), (64, 0.0))}
    costs = measure_cost(network)
    plan = plan_pruning(groups, scored(groups), costs, BudgetSettings(macs=fraction), Sensitivity(curves, 1, 1))
    step = costs.of({}).macs * 8 / 64
    assert fraction * plan.before.macs - step <= plan.after.macs <= fraction * plan.before.macs


@pytest.mark.parametrize("fraction", [0.9, 0.8, 0.7, 0.6, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_close_to_the_best_of_all_widths(latency_problem, fraction, seed, milliseconds):
    groups, scores, costs = latency_problem
    generator = np.random.default_rng(seed)
    curves = {}
    for group in groups:
        if group.locked:
            continue
        losses = np.cumsum(generator.exponential(1.0, group.units - 1))[::-1].tolist()
        curves[group.name] = (*((kept, float(losses[kept - 1])) for kept in range(1, group.units)), (group.units, 0.0))
    sensitivity = Sensitivity(curves, 10, 10)
    budget = BudgetSettings(latency=fraction, round_to=1)
    plan = plan_pruning(groups, scores, costs, budget, sensitivity)
    kept = {group.name: group.kept for group in plan.groups}
    limit = fraction * milliseconds(costs, 8, 16)
    loss = {name: dict(curve) for name, curve in curves.items()}
    best = min(
        (
            loss["conv1"][first] + loss["conv2"][second]
            for first, second in itertools.product(range(1, 9), range(1, 17))
            if milliseconds(costs, first, second) <= limit + 1e-12
        ),
        default=None,
    )
    assert (best is None) == bool(plan.missed)
    if best is None:
        return
    used = milliseconds(costs, kept["conv1"], kept["conv2"])
    assert used <= limit + 1e-9
    assert used == pytest.approx(costs.amount("latency", plan.cut))
    assert loss["conv1"][kept["conv1"]] + loss["conv2"][kept["conv2"]] <= 1.1 * best + 1e-9


def test_units_that_save_no_time_stay(latency_problem, milliseconds):
    """Eight outputs are one block: within it, equal shares take nothing from conv2 that gives no time back."""
    groups, scores, costs = latency_problem
    plan = plan_pruning(groups, scores, costs, BudgetSettings(latency=0.8, round_to=1))
    kept = {group.name: group.kept for group in plan.groups}
    limit = 0.8 * milliseconds(costs, 8, 16)
    assert milliseconds(costs, kept["conv1"], kept["conv2"]) <= limit
    for name, wider in (("conv1", (kept["conv1"] + 1, kept["conv2"])), ("conv2", (kept["conv1"], kept["conv2"] + 1))):
        if kept[name] < (8 if name == "conv1" else 16):
            assert milliseconds(costs, *wider) > limit, name
