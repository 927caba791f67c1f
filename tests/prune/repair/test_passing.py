"""Blocks that lost their branch: whether they pass their input on or add a constant."""

import onnx
import pytest
import torch

from secateur.explain.unit_scores import UnitScores
from secateur.export.onnx.model import export_onnx
from secateur.network.channels.follow import find_groups
from secateur.network.graph.pass_through import adds_zero, removed_branches
from secateur.network.graph.trace import trace
from secateur.network.load import load_model
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.repair import repair as repairing
from secateur.prune.repair.judging import judging
from secateur.prune.repair.reconstruction import reconstruct
from secateur.prune.repair.repair import RepairReport, RepairStep, repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.sensitivity import Sensitivity

GONE = "layer1.0.conv2"


def prepared(network):
    """A plan that takes the first block's branch of the padded network and nothing else whole; and the network cut by it."""
    groups = find_groups(network.module, network.example())
    scores, curves = {}, {}
    for group in (group for group in groups if not group.locked):
        scores[group.name] = UnitScores("seeded", torch.arange(group.units, dtype=torch.float64), (group.name,))
        worth = 1e-6 if group.branch == GONE else 10.0
        zero = [(0, 1e-6 if worth < 1 else 50.0)] if group.branch else []
        curves[group.name] = (*zero, (max(1, group.units // 4), worth), (group.units, 0.0))
    plan = plan_pruning(groups, scores, measure_cost(network), BudgetSettings(macs=0.64), Sensitivity(curves, 1, 1))
    small = surgery.cut(network, plan)
    assert [branch.layer for branch in removed_branches(trace(small.module, small.example()))] == [GONE]
    return plan, small


@pytest.fixture
def network(tiny, network_of, noise_images, spread):
    return spread(network_of(tiny("padded")), noise_images(60))[0]


def is_zero(network):
    (branch,) = removed_branches(trace(network.module, network.example()))
    return adds_zero(network.module, branch)


@pytest.mark.parametrize("kind", ["reconstruct", "distill"])
def test_without_validation_images_the_block_passes_its_input_on(network, noise_images, kind, monkeypatch):
    monkeypatch.setattr("secateur.prune.repair.distillation.STEPS", 6)
    _, small = prepared(network)
    repaired, report = repair(network, small, noise_images(40), kind)
    assert report.passing == (GONE,)
    assert (report.divergence_passing, report.divergence_with_constants) == (None, None)
    assert is_zero(repaired)
    assert GONE not in {fit.layer for fit in report.fits}
    assert len(report.fits) > 2


@pytest.mark.parametrize("kind", ["mean", "bn"])
def test_repairs_without_reconstruction_keep_constants(network, noise_images, kind):
    _, small = prepared(network)
    repaired, report = repair(network, small, noise_images(40), kind)
    assert report.passing == ()
    assert not is_zero(repaired)


@pytest.mark.parametrize(("size", "worth", "passes"), [(0.7, 1.05, False), (0.5, 1.05, True), (0.5, 0.0, False)])
def test_validation_images_choose(network, noise_images, monkeypatch, size, worth, passes):
    """The divergences are those of both reconstructions, made one by one from the network that they start from.

    ``size``: of what the branch added, whose mean a constant gives back.
    """
    monkeypatch.setattr(repairing, "PASSING_WORTH", worth)
    with torch.no_grad():
        for value in network.module.layer1[0].bn2.parameters():
            value.mul_(size)
    _, small = prepared(network)
    images, validation = noise_images(60), noise_images(50, seed=1)
    repaired, report = repair(network, small, images, "reconstruct", validation=validation)
    judge, start = judging(network, validation, 0, "cpu"), small
    if report.steps[0].kept:
        start, _ = repair(network, small, images, "mean")
    both = [judge(reconstruct(network, start, images, zeros=zeros)[0]) for zeros in ((GONE,), ())]
    assert [report.divergence_passing, report.divergence_with_constants] == pytest.approx(both, rel=1e-4)
    assert passes == (both[0] <= worth * both[1])
    assert report.steps[1].kept
    assert report.steps[1].divergence_after == pytest.approx(both[0 if passes else 1], rel=1e-4)
    assert report.passing == ((GONE,) if passes else ())
    assert is_zero(repaired) == passes
    assert RepairReport.from_json(report.to_json()) == report


def test_nothing_is_left_of_the_block_in_the_file(networks_file, shake, noise_images, tmp_path):
    network = load_model(f"{networks_file}:padded")
    shake(network.module)
    plan, small = prepared(network)
    repaired, report = repair(network, small, noise_images(40))
    assert report.passing == (GONE,)
    found = export_onnx(repaired, tmp_path / "model.onnx")
    assert found.parity.max_relative_difference < 1e-5
    kinds = [node.op_type for node in onnx.load(found.path).graph.node]
    before = [node.op_type for node in onnx.load(export_onnx(network, tmp_path / "whole.onnx").path).graph.node]
    assert [before.count(kind) - kinds.count(kind) for kind in ("Conv", "Add", "Relu")] == [2, 1, 2]
    assert set(kinds) == {"Conv", "Add", "Relu", "ReduceMean", "Gemm"}
    surgery.save(repaired, plan, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    assert is_zero(again)
    with torch.no_grad():
        assert torch.equal(again.logits(again.example(3)), repaired.logits(repaired.example(3)))


def test_older_reports_are_read():
    step = RepairStep("mean", None, None, True)
    values = RepairReport("mean", 3, (step,)).to_json()
    for name in ("passing", "divergence_passing", "divergence_with_constants"):
        del values[name]
    assert RepairReport.from_json(values) == RepairReport("mean", 3, (step,))
