"""Plans to a latency budget, against all widths there are."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.cut import cut_of
from secateur.network.channels.follow import find_groups
from secateur.prune.cost import measure_cost
from secateur.prune.latency_table import LatencyTable, LayerTimes
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.sensitivity import Sensitivity


def stairs(outputs, inputs):
    """Blocks of eight outputs and four inputs, and a penalty for inputs off the blocks: neither smooth nor monotone."""
    return 0.01 + 0.004 * math.ceil(outputs / 8) * math.ceil(inputs / 4) * (1.6 if inputs % 4 else 1.0)


@pytest.fixture(scope="module")
def problem(tiny, network_of):
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


def milliseconds(costs, first, second):
    """The chain's time at two widths, written down by hand: conv1 reads 3 colours, conv2 conv1, the head conv2."""
    head = costs.layers["head"].outputs
    return 0.02 + stairs(first, 3) + stairs(second, first) + stairs(head, second)


@pytest.mark.parametrize("fraction", [0.9, 0.8, 0.7, 0.6, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_close_to_the_best_of_all_widths(problem, fraction, seed):
    groups, scores, costs = problem
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


def test_units_that_save_no_time_stay(problem):
    """Eight outputs are one block: within it, equal shares take nothing from conv2 that gives no time back."""
    groups, scores, costs = problem
    plan = plan_pruning(groups, scores, costs, BudgetSettings(latency=0.8, round_to=1))
    kept = {group.name: group.kept for group in plan.groups}
    limit = 0.8 * milliseconds(costs, 8, 16)
    assert milliseconds(costs, kept["conv1"], kept["conv2"]) <= limit
    for name, wider in (("conv1", (kept["conv1"] + 1, kept["conv2"])), ("conv2", (kept["conv1"], kept["conv2"] + 1))):
        if kept[name] < (8 if name == "conv1" else 16):
            assert milliseconds(costs, *wider) > limit, name


def test_the_plan_names_its_table_and_survives_the_disk(problem, tmp_path):
    groups, scores, costs = problem
    plan = plan_pruning(groups, scores, costs, BudgetSettings(latency=0.8, round_to=1))
    plan.save(tmp_path / "plan.json")
    back = PruningPlan.load(tmp_path / "plan.json")
    assert back == plan
    assert back.latency_table == costs.times.sha256
    assert (back.resource, back.fraction) == ("latency", 0.8)
    plan_pruning(groups, scores, costs, BudgetSettings(latency=0.8, round_to=1)).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    by_macs = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.8))
    assert "latency_table" not in by_macs.to_json()


def test_a_plan_edited_by_hand_is_judged_by_the_table_where_there_is_one(problem):
    groups, scores, costs = problem
    plan = plan_pruning(groups, scores, costs, BudgetSettings(latency=0.6, round_to=1))
    whole = replace(plan, groups=tuple(replace(group, removed=()) for group in plan.groups))
    assert "leaves 1.000" in whole.revised(groups, costs).missed
    assert whole.revised(groups, replace(costs, times=None)).missed == ""
    assert cut_of(groups, {}) == whole.revised(groups, costs).cut
