import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import torch

from secateur.common.errors import InputError, UsageError
from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.follow import find_groups
from secateur.network.channels.group import ChannelGroup, Member
from secateur.network.load import load_model
from secateur.prune.cost import Cost, CostModel, LayerShape, measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings

FRACTIONS = (0.95, 0.8, 0.7, 0.6, 0.5, 0.4, 0.33, 0.25)


@pytest.fixture(scope="session")
def inputs(tiny, large, network_of):
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
            generator = torch.Generator().manual_seed(0)
            scores = {
                g.name: UnitScores("seeded", torch.rand(g.units, generator=generator, dtype=torch.float64), (g.name,))
                for g in groups
                if not g.locked
            }
            known[name] = groups, scores, measure_cost(network)
        return known[name]

    return build


def counts_after(groups, widths):
    """Channels that leave each layer, counted channel by channel from what the groups say."""
    gone = {}
    for group, removed in widths:
        for member in group.members:
            channels = {channel for unit in removed for channel in member.channels[unit]}
            gone.setdefault((member.layer, member.side), set()).update(channels)
    return {key: len(channels) for key, channels in gone.items()}


@pytest.mark.parametrize("resource", ["macs", "params", "size"])
@pytest.mark.parametrize(
    "name", ["digits", "padded", "inverted", "grouped", "dense", "resnet18", "mobilenet_v2", "densenet121", "resnext"]
)
def test_the_budget_is_kept_and_used(inputs, name, resource):
    """Never above; and either within 2% below, or no group could take one more aligned step."""
    groups, scores, costs = inputs(name)
    field = {"macs": "macs", "params": "parameters", "size": "bytes"}[resource]
    whole = getattr(costs.of({}), field)
    by_name = {group.name: group for group in groups}
    for fraction in FRACTIONS:
        plan = plan_pruning(groups, scores, costs, BudgetSettings(**{resource: fraction}))
        removed = [(by_name[g.name], g.removed) for g in plan.groups]
        after = costs.of(counts_after(groups, removed))
        assert plan.after == after
        assert plan.before == costs.of({})
        assert costs.of_cut(plan.cut) == after
        used = getattr(after, field)
        if plan.missed:
            assert used > fraction * whole
            assert all(g.kept <= g.step for g in plan.groups if not g.locked and g.units > g.step)
            continue
        assert used <= fraction * whole
        if used < (fraction - 0.02) * whole:
            for index, (group, gone) in enumerate(removed):
                own = plan.groups[index]
                if not gone:
                    continue
                back = own.kept % own.step or own.step
                order = sorted(gone, key=lambda unit, own=own: own.scores[unit])
                wider = [*removed[:index], (group, order[: max(0, len(gone) - back)]), *removed[index + 1 :]]
                assert getattr(costs.of(counts_after(groups, wider)), field) > fraction * whole


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


def test_the_head_is_never_cut(inputs):
    for name in ("digits", "padded", "inverted", "dense", "resnet18"):
        groups, scores, costs = inputs(name)
        plan = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.3))
        head = next(group for group in groups if "classes" in group.locked)
        name_of_head = head.producers[0].layer
        assert name_of_head not in plan.cut or not plan.cut[name_of_head].out_removed
        assert next(own for own in plan.groups if own.name == head.name).removed == ()


def test_a_budget_that_cannot_be_is_missed_by_name(inputs):
    groups, scores, costs = inputs("padded")
    plan = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.0001))
    assert "macs 0.0001" in plan.missed
    assert all(own.kept == min(own.units, own.step) for own in plan.groups if not own.locked)
    coarse = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.3, round_to=16))
    assert coarse.missed
    assert coarse.after.macs > 0.3 * coarse.before.macs


def test_an_alignment_wider_than_all_is_refused(inputs):
    groups, scores, costs = inputs("padded")
    with pytest.raises(UsageError, match="round_to 512"):
        plan_pruning(groups, scores, costs, BudgetSettings(macs=0.5, round_to=512))


def test_a_network_locked_throughout_is_refused(inputs):
    groups, scores, costs = inputs("padded")
    shut = [dataclasses.replace(group, locked="somebody sat on it.") for group in groups]
    with pytest.raises(UsageError, match="somebody sat on it"):
        plan_pruning(shut, scores, costs, BudgetSettings(macs=0.5))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_scores_still_prune(inputs, value):
    groups, scores, costs = inputs("padded")
    flat = {name: UnitScores("flat", torch.full_like(own.values, value), ()) for name, own in scores.items()}
    plan = plan_pruning(groups, flat, costs, BudgetSettings(macs=0.5))
    assert not plan.missed
    assert 0.4 * plan.before.macs < plan.after.macs <= 0.5 * plan.before.macs


def test_a_group_far_below_the_others_is_not_swallowed(inputs):
    """Scores of one group a million times smaller: every group still loses a share of its own and keeps one."""
    groups, scores, costs = inputs("padded")
    tilted = {**scores, "layer3.0.conv1": UnitScores("x", scores["layer3.0.conv1"].values * 1e-6, ())}
    plan = plan_pruning(groups, tilted, costs, BudgetSettings(macs=0.5))
    same = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.5))
    assert [own.removed for own in plan.groups] == [own.removed for own in same.groups]


def test_two_runs_give_equal_bytes_and_the_plan_comes_back(inputs, tmp_path):
    groups, scores, costs = inputs("inverted")
    first, second = (plan_pruning(groups, scores, costs, BudgetSettings(params=0.6)) for _ in range(2))
    first.save(tmp_path / "a.json")
    second.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert PruningPlan.load(tmp_path / "a.json") == first
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["after"]["parameters"] == first.after.parameters
    assert [group["kept"] + len(group["removed"]) for group in values["groups"]] == [g.units for g in first.groups]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"groups": 5}', '{"groups": [{}]}', "no json"])
def test_files_that_hold_no_plan(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match=r"plan\.json"):
        PruningPlan.load(tmp_path / "plan.json")


def test_what_removing_a_group_alone_saves(inputs):
    groups, scores, costs = inputs("padded")
    plan = plan_pruning(groups, scores, costs, BudgetSettings(macs=0.5))
    for group, own in zip(groups, plan.groups, strict=True):
        alone = costs.of(counts_after(groups, [(group, own.removed)]))
        assert own.saves.macs == plan.before.macs - alone.macs
        assert own.saves.parameters == plan.before.parameters - alone.parameters


PURE = """
import pickle, sys
import torch
torch.nn.Module.__call__ = torch.nn.Module.__init__ = None
groups, scores, costs, budget = pickle.load(open(sys.argv[1], "rb"))
from secateur.prune.planning import plan_pruning
plan_pruning(groups, scores, costs, budget).save(__import__("pathlib").Path(sys.argv[2]))
"""


def test_planning_is_pure(inputs, tmp_path):
    """In another process, from plain values alone, where no module can be made or run."""
    groups, scores, costs = inputs("padded")
    budget = BudgetSettings(macs=0.5)
    with (tmp_path / "inputs").open("wb") as file:
        pickle.dump((groups, scores, costs, budget), file)
    subprocess.run([sys.executable, "-c", PURE, str(tmp_path / "inputs"), str(tmp_path / "there.json")], check=True)
    plan_pruning(groups, scores, costs, budget).save(tmp_path / "here.json")
    assert (tmp_path / "there.json").read_bytes() == (tmp_path / "here.json").read_bytes()


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
