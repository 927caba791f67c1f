"""`--dry-run`: what a run would do, said without doing any of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from secateur import load_model
from secateur.common.errors import ExitCode, InputError, UsageError
from secateur.pipeline.dry_run import dry_run
from secateur.pipeline.recipe.recipe import Recipe
from shell import secateur

SETTINGS = Recipe().override(macs=0.5, epochs=1)


@pytest.fixture(scope="module")
def found():
    return dry_run(SETTINGS)


def test_nothing_is_written(tmp_path):
    out = tmp_path / "run"
    code, stdout, stderr = secateur("prune-and-export", "--dry-run", "--macs", "0.5", "--out", out)
    assert code == 0, stderr
    assert "Nothing was written" in stdout
    assert not list(tmp_path.iterdir())


def test_groups_share_out_the_macs_of_convolutions_and_linear_layers(found):
    network = load_model("digits")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.module(network.example(1))
    macs = {name.removeprefix("DigitsNetwork."): sum(flops.values()) / 2 for name, flops in counter.flop_counts.items()}
    whole = macs["Global"]
    layers = {name for name, layer in network.module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert {layer for row in found.groups for layer in row.layers} >= layers
    for row in found.groups:
        assert row.macs_share == pytest.approx(sum(macs.get(layer, 0) for layer in row.layers) / whole)
    assert sum(row.macs_share for row in found.groups) == pytest.approx(1)


def test_what_locks_cost_is_said(found):
    assert {row.name for row in found.groups if row.locked} == {
        group.name for lock in found.locks.locks for group in lock.groups
    }
    for resource, name in (("macs", "macs_share"), ("params", "params_share")):
        held = sum(getattr(row, name) for row in found.groups if row.locked)
        assert found.locks.shares[resource] == pytest.approx(held)
    assert sum(row.params_share for row in found.groups) == pytest.approx(1)
    assert found.out_of_reach == ""


@pytest.mark.parametrize("options", [(), ("--best-effort",)])
def test_a_budget_out_of_reach_is_exit_code_1_after_the_tables(options):
    code, stdout, stderr = secateur("prune-and-export", "--dry-run", "--params", "0.001", *options)
    assert "Lowest budgets that can be reached: macs 0.000879, params 0.0016" in stdout
    assert "Nothing was written" in stdout
    assert code == (ExitCode.OK if options else ExitCode.GATE_FAILED), stderr
    assert ("params 0.001 cannot be reached" in stderr) != bool(options)


def test_the_budget_is_said_in_figures(found):
    assert found.budget == "50% of 3,295,872 MACs: at most 1,647,936"
    assert "lose at most 2 points" in dry_run(Recipe().override(max_drop=2.0)).budget
    assert "in 3 rounds" in dry_run(Recipe().override(size=0.4, rounds=3)).budget


def test_every_stage_has_an_estimate_that_follows_the_work(found):
    seconds = dict(found.seconds)
    assert all(value is not None and value >= 0 for value in seconds.values())
    assert seconds["recover"] > 0
    more = dict(dry_run(SETTINGS.override(epochs=0, allocation="uniform", repair="none", page=False)).seconds)
    assert more["recover"] == more["sensitivity"] == more["repair"] == more["evidence"] == 0
    assert dict(dry_run(SETTINGS.override(rank_by="agic")).seconds)["explain"] is None, "nothing to go by"
    assert 2**28 < found.memory_bytes < 2**35


def test_what_the_run_refuses_is_refused(tmp_path):
    with pytest.raises(UsageError, match="as wide as every layer"):
        dry_run(SETTINGS.override(round_to=1000))
    with pytest.raises(InputError, match="do not exist"):
        dry_run(SETTINGS.override(weights=str(tmp_path / "missing.pt")))
    with pytest.raises(UsageError, match="unknown ranker"):
        dry_run(replace(SETTINGS, ranking=replace(SETTINGS.ranking, rank_by="astrology")))
    assert secateur("prune-and-export", "--dry-run", "--model", "resnet18")[0] == ExitCode.BAD_INPUT
