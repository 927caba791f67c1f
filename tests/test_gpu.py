"""The whole chain on a GPU: every ranking, sensitivities, repair and the main job; and its figures beside the CPU's."""

import json
from dataclasses import replace

import jsonschema
import pytest
import torch

from secateur import load_images, load_model, match_classes, prune_and_export, rank_kernels
from secateur.common.errors import ExitCode
from secateur.explain.registry import rankers
from secateur.explain.scores import RankingTask
from secateur.explain.unit_scores import score_units
from secateur.export.report.content import schema
from secateur.network.channels.follow import find_groups
from secateur.network.evaluation import predict
from secateur.network.training import TrainingSettings, train
from secateur.pipeline.recipe.recipe import Recipe
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.repair import repair
from secateur.prune.settings import REPAIRS, BudgetSettings
from secateur.prune.widths.ranking_choice import measure_orders

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DRAWN = {"agic", "picnn", "consensus", "random"}
"""Rankings that draw or train: another device's generator gives other scores."""


@pytest.fixture(scope="module")
def digits():
    network = load_model("digits")
    return match_classes(network, load_images("digits", network.preprocessing))


def spearman(first, second):
    ranks = torch.stack([first.argsort().argsort(), second.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.parametrize("name", [one.name for one in rankers()])
def test_every_ranking_runs_there_and_brings_its_scores_back(digits, name):
    network, images = digits
    task = RankingTask(network, images.train.sample(100, seed=0))
    found = rank_kernels(replace(task, device="cuda"), name)
    assert all(not values.is_cuda for part in (found.layers, found.per_class) for values in part.values())
    assert all(not parameter.is_cuda for parameter in network.module.parameters()), "the network stays where it was"
    if name not in DRAWN:
        expected = rank_kernels(task, name)
        for layer, values in expected.layers.items():
            if values.std() > 0:
                assert spearman(values, found.layers[layer]) > 0.97, layer


@pytest.mark.parametrize("kind", REPAIRS)
def test_what_is_measured_and_repaired_there_is_what_the_cpu_gives(digits, kind):
    network, images = digits
    calibration = images.train.sample(200, seed=0)
    groups, costs = find_groups(network.module, network.example()), measure_cost(network)
    scores = rank_kernels(RankingTask(network, calibration), "gap")
    curves, logits = {}, {}
    for device in ("cpu", "cuda"):
        curves[device] = measure_orders(network, groups, scores, calibration, device=device)
        plan = plan_pruning(groups, score_units(groups, scores), costs, BudgetSettings(macs=0.5), curves["cpu"])
        small, _ = repair(
            network, surgery.cut(network, plan), calibration, kind, validation=images.validation, device=device
        )
        assert all(not parameter.is_cuda for parameter in small.module.parameters())
        logits[device] = predict(small.module, images.validation)
    for group, curve in curves["cpu"].curves.items():
        for (kept, loss), (also_kept, other) in zip(curve, curves["cuda"].curves[group], strict=True):
            assert kept == also_kept
            assert other == pytest.approx(loss, rel=0.05, abs=0.01)
    same = (logits["cpu"].argmax(1) == logits["cuda"].argmax(1)).double().mean()
    assert same > (0.9 if kind == "distill" else 0.97)


def test_one_process_trains_on_one_device_after_the_other(digits):
    network, images = digits
    sample, trained = images.train.sample(64, seed=0), {}
    for index, device in enumerate(("cuda", "cpu", "cuda")):
        seen = set()

        def loss(logits, batch, labels, seen=seen):
            seen.update((logits.device.type, batch.device.type, labels.device.type))
            return torch.nn.functional.cross_entropy(logits, labels)

        module = network.copy().module
        train(module, sample, loss, None, TrainingSettings(1, 16, 0.01, 0.0, False, 0, device))
        assert seen == {device}
        trained[index] = predict(module, images.validation)
    assert torch.allclose(trained[0], trained[2], atol=0.05)
    assert (trained[0].argmax(1) == trained[1].argmax(1)).double().mean() > 0.97


@pytest.mark.parametrize("provider", ["cuda", "cpu"])
def test_the_main_job(tmp_path, provider):
    settings = Recipe().override(device="cuda", provider=provider, precisions=("fp32", "fp16", "int8"), epochs=1)
    run = prune_and_export(settings, tmp_path / "out")
    report = json.loads((run.folder / "report.json").read_text())
    jsonschema.validate(report, schema())
    assert run.exit_code == ExitCode.OK
    assert report["provider"] == provider
    assert report["environment"]["gpu"]
    assert {row["precision"] for row in report["variants"]} == {"fp32", "fp16", "int8"}
    assert all(row["accuracy"] > 0.9 for row in report["variants"])
    assert (run.folder / "report.html").is_file()


@pytest.mark.parametrize("graphs", [False, True])
def test_pixels_graphs_fused_biases_and_torch(tmp_path, graphs):
    """Every option at once; what was chosen, and the speedups on the device and in torch, are in the report."""
    settings = Recipe().override(
        device="cuda", provider="cuda", precisions=("fp32", "fp16"), input="uint8", cuda_graphs=graphs, latency_of="device",
        require_speedup=0.01, batches=(1, 64), rank_by="magnitude", repair="bn", epochs=0, page=False,
    )  # fmt: skip
    run = prune_and_export(settings, tmp_path / "out")
    report = json.loads((run.folder / "report.json").read_text())
    jsonschema.validate(report, schema())
    assert run.exit_code == ExitCode.OK
    assert {row["file"] for row in report["conditions"]["cuda"]["fused_biases"]} == {
        "baseline.onnx", "model.onnx", "baseline-fp16.onnx", "model-fp16.onnx",
    }  # fmt: skip
    assert set(report["ratios"]["device_latency"]) == set(report["ratios"]["latency"]) == {"1", "64"}
    assert all(row["accuracy"] > 0.9 for row in report["variants"])
    rows = {(row["runtime"], row["precision"], row["batch"]) for row in report["torch_times"]["rows"]}
    assert {
        (name, kind, batch) for name in ("onnxruntime", "torch") for kind in ("fp32", "fp16") for batch in (1, 64)
    } <= rows
    assert ("torch.compile", "fp32", 64) in rows or any(
        "torch.compile" in note for note in report["torch_times"]["notes"]
    )
    assert "on the device, batch 64" in (run.folder / "report.md").read_text()


def test_a_latency_budget_on_cuda(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    quick = Recipe().override(
        latency=0.97, provider="cuda", device="cuda", rank_by="magnitude", repair="bn", epochs=0, page=False
    )
    run = prune_and_export(replace(quick, measurement=replace(quick.measurement, batches=(1,))), tmp_path / "out")
    report = json.loads((run.folder / "report.json").read_text())
    jsonschema.validate(report, schema())
    assert report["latency_budget"]["provider"] == "cuda"
    assert run.exit_code in (ExitCode.OK, ExitCode.GATE_FAILED)
