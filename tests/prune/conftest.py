"""Fixtures that the tests of pruning share."""

import math
from dataclasses import replace

import pytest
import torch

from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.latency_table import LatencyTable, LayerTimes
from secateur.prune.planning import plan_pruning
from secateur.prune.rounds import combine
from secateur.prune.settings import BudgetSettings


@pytest.fixture(scope="session")
def cut_by_half():
    """The network without the first half of every unlocked group's units."""

    def build(network):
        groups = find_groups(network.module, network.example())
        cut = cut_of(groups, {g.name: range(g.units // 2) for g in groups if not g.locked})
        return replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))

    return build


@pytest.fixture(scope="session")
def inputs(tiny, large, network_of, scored):
    """Groups, seeded scores and costs of a network, by name, each worked out once."""
    known = {}

    def build(name):
        if name not in known:
            if name == "digits":
                network = load_model("digits")
            elif name in ("resnet18", "mobilenet_v2", "densenet121", "resnext"):
                network = network_of(large(name), (3, 32, 32), 5)
            else:
                network = network_of(tiny(name))
            groups = find_groups(network.module, network.example())
            known[name] = groups, scored(groups), measure_cost(network)
        return known[name]

    return build


@pytest.fixture(scope="session")
def scored():
    """Seeded scores of the units of every unlocked group."""

    def score(groups, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {
            g.name: UnitScores("seeded", torch.rand(g.units, generator=generator, dtype=torch.float64), (g.name,))
            for g in groups
            if not g.locked
        }

    return score


@pytest.fixture(scope="session")
def counts_after():
    """Channels that leave each layer, counted channel by channel from what the groups say."""

    def count(groups, widths):
        gone = {}
        for group, removed in widths:
            for member in group.members:
                channels = {channel for unit in removed for channel in member.channels[unit]}
                gone.setdefault((member.layer, member.side), set()).update(channels)
        return {key: len(channels) for key, channels in gone.items()}

    return count


@pytest.fixture(scope="session")
def draw_scores():
    """Scores drawn with a seed, which their method names."""

    def draw(groups, seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            group.name: UnitScores(
                f"draw {seed}", torch.rand(group.units, generator=generator, dtype=torch.float64), ()
            )
            for group in groups
            if not group.locked
        }

    return draw


@pytest.fixture(scope="session")
def cut_in_rounds(draw_scores):
    """Plans and networks after each round, cut one out of the other; scores are drawn anew in every round."""

    def cut(network, fractions, seed=0):
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

    return cut


def stairs(outputs, inputs):
    """Blocks of eight outputs and four inputs, and a penalty for inputs off the blocks: neither smooth nor monotone."""
    return 0.01 + 0.004 * math.ceil(outputs / 8) * math.ceil(inputs / 4) * (1.6 if inputs % 4 else 1.0)


@pytest.fixture(scope="session")
def latency_problem(tiny, network_of):
    """Groups, scores and costs of the chain, with a latency table that knows every width."""
    network = network_of(tiny("chain"))
    groups = find_groups(network.module, network.example())
    costs = measure_cost(network)
    layers = {}
    for name, shape in costs.layers.items():
        if shape.inputs is not None:
            outs, ins = range(1, shape.outputs + 1), range(1, shape.inputs + 1)
            layers[name] = (LayerTimes(tuple(outs), tuple(ins), tuple(tuple(stairs(o, i) for i in ins) for o in outs)),)
    table = LatencyTable(layers, 0.02, {"provider": "cpu", "batch": 1})
    scores = {
        group.name: UnitScores("seeded", torch.arange(group.units, dtype=torch.float64), (group.name,))
        for group in groups
        if not group.locked
    }
    return groups, scores, replace(costs, times=table)


@pytest.fixture(scope="session")
def milliseconds():
    """The chain's time at two widths, written down by hand: conv1 reads 3 colours, conv2 conv1, the head conv2."""

    def chain_time(costs, first, second):
        head = costs.layers["head"].outputs
        return 0.02 + stairs(first, 3) + stairs(second, first) + stairs(head, second)

    return chain_time
