import dataclasses
import pickle
import subprocess
import sys

import pytest
import torch

from secateur.common.errors import UsageError
from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.follow import find_groups
from secateur.prune.planning import obstacle, plan_pruning
from secateur.prune.settings import BudgetSettings

FRACTIONS = (0.95, 0.8, 0.7, 0.6, 0.5, 0.4, 0.33, 0.25)


@pytest.mark.parametrize("resource", ["macs", "params", "size"])
@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "padded",
        "inverted",
        "grouped",
        "dense",
        "resnet18",
        "mobilenet_v2",
        pytest.param("densenet121", marks=pytest.mark.long),
        "resnext",
    ],
)
def test_the_budget_is_kept_and_used(inputs, name, resource, counts_after):
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


def test_what_cannot_be_cut_is_known_before_anything_is_scored(tiny):
    groups = find_groups(tiny("padded"), torch.zeros(2, 3, 12, 12))
    assert obstacle(groups, "auto") == obstacle(groups, 16) == ""
    assert "round_to 32" in obstacle(groups, 32)
    shut = [dataclasses.replace(group, locked="somebody sat on it.") for group in groups]
    assert "somebody sat on it" in obstacle(shut, 1)
