"""What locked groups cost, and the lowest budget: against every choice of widths, the planner, and networks that are cut."""

import itertools
from dataclasses import replace

import pytest
import torch

from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.follow import find_groups
from secateur.network.channels.group import ChannelGroup, Member
from secateur.network.load import load_model
from secateur.prune import surgery
from secateur.prune.cost import Cost, CostModel, LayerShape, measure_cost
from secateur.prune.latency_table import LatencyTable, LayerTimes
from secateur.prune.locked_share import (
    TABLE_ERROR,
    group_shares,
    lowest_fraction,
    measure_locks,
    rounded_up,
)
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.sensitivity import Sensitivity

RESOURCES = {"macs": "macs", "params": "parameters", "size": "bytes"}
NAMES = ("digits", "padded", "inverted", "grouped", "dense", "gated")


@pytest.fixture(scope="module")
def inputs(tiny, large, network_of):
    """A network with its groups and costs, by name, each worked out once; with ``locked`` every third group is locked too."""
    known = {}

    def build(name, locked=False):
        if name not in known:
            if name == "digits":
                network = load_model("digits")
            elif name in ("resnet18", "mobilenet_v2"):
                network = network_of(large(name), (3, 32, 32), 5)
            else:
                network = network_of(tiny(name))
            known[name] = network, find_groups(network.module, network.example()), measure_cost(network)
        network, groups, costs = known[name]
        return network, lock_every_third(groups) if locked else groups, costs

    return build


def lock_every_third(groups):
    chosen = [group for group in groups if not group.locked][::3]
    kept = {group.branch for group in chosen}  # a branch with a locked group may not go whole
    return tuple(
        replace(
            group,
            locked="locked by the test." if group in chosen else group.locked,
            branch="" if group.branch in kept else group.branch,
        )
        for group in groups
    )


def scored(groups):
    generator = torch.Generator().manual_seed(0)
    return {
        group.name: UnitScores("seeded", torch.rand(group.units, generator=generator, dtype=torch.float64), ())
        for group in groups
        if not group.locked
    }


def seeded_losses(groups, seed=0):
    """Losses of every group at a few widths, and without any unit where a branch may go."""
    generator = torch.Generator().manual_seed(seed)
    curves = {}
    for group in groups:
        if not group.locked:
            widths = sorted({max(1, group.units // part) for part in (2, 4, 8)} - {group.units})
            widths = [0, *widths] if group.branch and group.ends_branch else widths
            losses = sorted(torch.rand(len(widths), generator=generator).tolist(), reverse=True)
            curves[group.name] = (*zip(widths, losses, strict=True), (group.units, 0.0))
    return Sensitivity(curves, 1, 1)


def cost_at(groups, costs, kept):
    """Counted channel by channel from what the groups say."""
    gone = {}
    for group in groups:
        for member in group.members:
            units = range(group.units - kept.get(group.name, group.units))
            gone.setdefault((member.layer, member.side), set()).update(
                c for unit in units for c in member.channels[unit]
            )
    return costs.of({key: len(channels) for key, channels in gone.items()})


def aligned_widths(group, step):
    """All of it, and all numbers of units whose channels, in the layer that gives the group its name, make whole steps."""
    channels = len(group.members[0].channels[0])
    return [units for units in range(1, group.units + 1) if units == group.units or units * channels % step == 0]


def every_choice(groups, step, whole_branches):
    """All aligned widths of all groups, and all sets of branches that go whole."""
    free = [group for group in groups if not group.locked]
    ends = sorted({group.branch for group in free if group.branch and group.ends_branch}) if whole_branches else []
    for gone in itertools.chain.from_iterable(itertools.combinations(ends, count) for count in range(len(ends) + 1)):
        widths = [[0] if group.branch in gone else aligned_widths(group, step) for group in free]
        for chosen in itertools.product(*widths):
            yield dict(zip((group.name for group in free), chosen, strict=True))


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("allocation", ["uniform", "sensitivity"])
@pytest.mark.parametrize("name", ["padded", "inverted", "grouped", "dense", "gated"])
def test_the_lowest_budget_is_that_of_the_cheapest_of_all_choices(inputs, name, allocation, locked):
    _, groups, costs = inputs(name, locked)
    free = [group for group in groups if not group.locked]
    assert all(len({len(unit) for unit in member.channels}) == 1 for group in free for member in group.members)
    settings = BudgetSettings(allocation=allocation, round_to=8)
    found = [cost_at(groups, costs, kept) for kept in every_choice(groups, 8, allocation == "sensitivity")]
    for resource, field in RESOURCES.items():
        lowest = min(getattr(cost, field) for cost in found) / getattr(costs.whole, field)
        assert lowest_fraction(groups, costs, settings, resource) == pytest.approx(lowest, rel=1e-12), resource


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize(
    ("name", "allocation", "round_to"),
    [
        *itertools.product(NAMES, ("uniform", "sensitivity"), ("auto", 1, 6)),
        *itertools.product(("resnet18", "mobilenet_v2"), ("uniform",), ("auto", 1)),
        ("resnet18", "sensitivity", "auto"),
    ],
)
def test_the_planner_reaches_the_lowest_budget_and_no_lower(inputs, name, allocation, round_to, locked):
    network, groups, costs = inputs(name, locked)
    losses = seeded_losses(groups) if allocation == "sensitivity" else None
    settings = BudgetSettings(allocation=allocation, round_to=round_to)
    locks = measure_locks(groups, costs, settings)
    for resource, field in RESOURCES.items():
        lowest = locks.lowest[resource]
        for fraction, reached in ((lowest, True), (rounded_up(lowest), True), (0.9999 * lowest, False)):
            budget = replace(settings, **{resource: fraction})
            plan = plan_pruning(groups, scored(groups), costs, budget, losses)
            assert bool(plan.missed) != reached, (resource, fraction)
            assert bool(locks.unreachable(budget)) != reached
            left = getattr(plan.after, field) / getattr(plan.before, field)
            if not reached:
                assert left == pytest.approx(lowest, rel=1e-12), "as close as possible"
            assert left <= max(fraction, lowest) * (1 + 1e-12)
            assert all(group.kept == group.units for group in plan.groups if group.locked)
    if name == "padded":
        assert measure_cost(surgery.cut(network, plan)).whole == plan.after


def test_shares_are_those_of_the_layers_counted_by_hand(inputs):
    _, groups, costs = inputs("padded", locked=True)
    locks = measure_locks(groups, costs, BudgetSettings())
    reasons = {lock.reason: {group.name for group in lock.groups} for lock in locks.locks}
    assert reasons == {
        reason: {group.name for group in groups if group.locked == reason}
        for reason in {g.locked for g in groups} - {""}
    }
    assert len(reasons) == 2
    for resource, field in (("macs", "macs"), ("params", "parameters")):
        held = 0
        for group in groups:
            own = {member.layer for member in group.members if member.side == "out" and member.layer in costs.layers}
            amount = sum(getattr(costs.layers[layer].cost(0, 0), field) for layer in own)
            assert group_shares(group, costs)[resource] == pytest.approx(amount / getattr(costs.whole, field))
            held += amount if group.locked else 0
        assert locks.shares[resource] == pytest.approx(held / getattr(costs.whole, field))
        assert sum(lock.shares[resource] for lock in locks.locks) == pytest.approx(locks.shares[resource])
        assert locks.outside[resource] == pytest.approx(0, abs=1e-12), "every layer belongs to a group"
    macs = [lock.shares["macs"] for lock in locks.locks]
    assert macs == sorted(macs, reverse=True)


def chain(locked=""):
    """conv1 (3 to 8) and conv2 (8 to 16), read by a head of 4."""

    def group(name, layer, reader, units, why=""):
        ones = tuple((index,) for index in range(units))
        return ChannelGroup(
            name,
            (Member(layer, "out", "conv", units, ones), Member(reader, "in", "conv", units, ones)),
            locked=why,
        )

    layers = {
        "conv1": LayerShape(8, 3, 1, 9, 64, 0),
        "conv2": LayerShape(16, 8, 1, 9, 64, 0),
        "head": LayerShape(4, 16, 1, 1, 1, 0),
    }
    groups = (group("conv1", "conv1", "conv2", 8, locked), group("conv2", "conv2", "head", 16))
    return groups, CostModel(layers, Cost(1000, 100, 400))


def test_a_layer_that_two_groups_share_out_counts_by_its_channels_and_the_rest_is_outside():
    groups, costs = chain()
    halves = tuple(tuple((index,) for index in part) for part in (range(8), range(8, 16)))
    shared = tuple(
        ChannelGroup(name, (Member("conv2", "out", "conv", 16, half),), locked=why)
        for name, half, why in zip(("first", "second"), halves, ("no", ""), strict=True)
    )
    whole = costs.whole.macs
    conv2 = 64 * 9 * 8 * 16
    locks = measure_locks((groups[0], *shared), costs, BudgetSettings(allocation="uniform", round_to=1))
    assert locks.shares["macs"] == pytest.approx(conv2 / 2 / whole)
    assert locks.outside["macs"] == pytest.approx((1000 + 4 * 16) / whole), "the fixed part, and the head"


def test_what_cannot_be_reached_is_told_with_the_locks_that_hold_most():
    groups, costs = chain("it is read in a loop.")
    locks = measure_locks(groups, costs, BudgetSettings(round_to=4))
    conv1, conv2 = 64 * 9 * 3 * 8, 64 * 9 * 8 * 16
    whole = conv1 + conv2 + 64 + 1000
    lowest = (conv1 + conv2 / 4 + 16 + 1000) / whole
    assert locks.lowest["macs"] == pytest.approx(lowest)
    assert locks.unreachable(BudgetSettings(macs=0.5, round_to=4)) == ""
    told = locks.unreachable(BudgetSettings(macs=0.3, round_to=4))
    assert f"macs 0.3 cannot be reached: with every group at its narrowest {lowest:.3g} of the MACs is left" in told
    assert f"({100 * conv1 / whole:.1f}% in conv1: it is read in a loop)" in told
    advice = locks.advice(BudgetSettings(macs=0.3, round_to=4))
    assert f"--macs {rounded_up(lowest):g} or more" in advice
    assert "--best-effort" in advice
    assert locks.unreachable(BudgetSettings(max_drop=1.0)) == "", "a search has no fraction to reach"
    assert "conv1" in locks.unreachable(BudgetSettings(size=0.01, round_to=4)), "bytes are told by parameters"


def table(slow_at=None):
    """Time in proportion to the MACs of conv1 and conv2, but for a width of conv1 that is slow."""

    def times(outputs, inputs, slow=None):
        rows = tuple(
            tuple(0.01 * out * (0.5 if read is None else read) * (9 if out == slow else 1) for read in inputs)
            for out in outputs
        )
        return (LayerTimes(outputs, inputs, rows),)

    widths = tuple(range(1, 17))
    layers = {"conv1": times(widths[:8], (3,), slow_at), "conv2": times(widths, widths[:8])}
    return LatencyTable(layers, 0.2, {"batch": 1, "provider": "cpu"})


@pytest.mark.parametrize("slow_at", [None, 1, 2])
@pytest.mark.parametrize("allocation", ["uniform", "sensitivity"])
def test_time_is_estimated_where_there_is_a_table(allocation, slow_at):
    """The narrowest width may be a slow one: the lowest estimate is that of the quickest widths that can be planned."""
    groups, costs = chain()
    settings = BudgetSettings(allocation=allocation, round_to=1)
    assert "latency" not in measure_locks(groups, costs, settings).lowest
    timed = replace(costs, times=table(slow_at))
    locks = measure_locks((groups[0], replace(groups[1], locked="so it is.")), timed, settings)
    assert locks.shares["latency"] == pytest.approx(0.01 * 16 * 8 / timed.amount("latency"))
    lowest = measure_locks(groups, timed, settings).lowest["latency"]

    def at(first, second):
        layers = timed.layer_amount("latency", "conv1", 8 - first, 0)
        return layers + timed.layer_amount("latency", "conv2", 16 - second, 8 - first) + 0.2

    best = min(at(first, second) for first in range(1, 9) for second in range(1, 17)) / at(8, 16)
    plan = plan_pruning(groups, scored(groups), timed, BudgetSettings(latency=0.001, round_to=1), None)
    if allocation == "sensitivity":
        assert lowest == pytest.approx(best)
        plan = plan_pruning(
            groups, scored(groups), timed, BudgetSettings(latency=0.001, round_to=1), seeded_losses(groups)
        )
    assert plan.missed
    assert lowest <= timed.amount("latency", plan.cut) / timed.amount("latency") * (1 + 1e-9)
    if allocation == "uniform":
        assert lowest == pytest.approx(timed.amount("latency", plan.cut) / timed.amount("latency"))
    slack = replace(settings, latency=lowest / (1 + TABLE_ERROR) * 1.001)
    assert measure_locks(groups, timed, settings).unreachable(slack) == ""
    told = measure_locks(groups, timed, settings).unreachable(replace(settings, latency=lowest / 2))
    assert "estimated latency is left by the latency table" in told


@pytest.mark.parametrize("value", [1.0, 0.5, 0.1234, 0.30000000000000004, 1 / 3, 0.01626, 8.7867e-4])
def test_a_fraction_rounded_up_is_never_lower_and_hardly_higher(value):
    assert value <= rounded_up(value) <= value * 1.01
    assert float(f"{rounded_up(value):g}") == rounded_up(value), "as the message prints it"
