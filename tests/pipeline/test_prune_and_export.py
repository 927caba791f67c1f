"""The main job, end to end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pytest
import torch

from secateur import load_model, prune_and_export
from secateur.common.errors import BudgetError, ExitCode, InputError, UsageError
from secateur.common.files import sha256_file
from secateur.export.report.content import schema
from secateur.export.settings import GateSettings
from secateur.network.images.load import load_images
from secateur.pipeline.recipe.recipe import Recipe
from secateur.prune.locked_share import rounded_up

FILES = {
    "baseline.onnx", "model.onnx", "model.safetensors", "plan.json", "scores.safetensors", "recipe.toml", "report.json",
    "report.md", "report.html", "junit.xml", "sensitivity.json", "model-card.md",
    "benchmark-smaller.json", "benchmark-bigger.json",
}  # fmt: skip
KEPT_BYTE_FOR_BYTE = (
    "plan.json",
    "model.onnx",
    "baseline.onnx",
    "model.safetensors",
    "scores.safetensors",
    "recipe.toml",
    "sensitivity.json",
)


@pytest.fixture(scope="module")
def quick():
    return Recipe().override(page=False, epochs=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick):
    return prune_and_export(quick, tmp_path_factory.mktemp("run") / "out")


def test_every_file_is_there_and_the_report_fits_its_schema(run):
    assert {path.name for path in run.folder.iterdir()} - {".secateur"} == FILES
    jsonschema.validate(json.loads((run.folder / "report.json").read_text()), schema())
    assert run.exit_code == ExitCode.OK


def test_figures_of_the_report_can_be_found_again(run):
    """Accuracy, MACs, parameters and bytes, each from the shipped file by another way."""
    report = run.report
    splits = load_images("digits", load_model("digits").preprocessing)
    for side, name in (("baseline", "baseline.onnx"), ("pruned", "model.onnx")):
        session = onnxruntime.InferenceSession(run.folder / name, providers=["CPUExecutionProvider"])
        images = torch.cat([batch for batch, _ in splits.test.batches(100)]).numpy()
        predicted = session.run(None, {"images": images})[0].argmax(1)
        assert report[side]["accuracy"] == (predicted == splits.test.labels.numpy()).mean()
        assert report[side]["onnx_bytes"] == (run.folder / name).stat().st_size
    small = load_model(str(run.folder))
    assert report["pruned"]["parameters"] == sum(parameter.numel() for parameter in small.module.parameters())
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.module(small.example(1))
    assert report["pruned"]["macs"] == counter.get_total_flops() // 2
    assert report["ratios"]["macs"] >= 2.0
    assert report["drop"]["points"] == pytest.approx(
        100 * (report["baseline"]["accuracy"] - report["pruned"]["accuracy"])
    )
    assert sum(report["inputs"]["images"][name] for name in ("train", "validation", "test")) == 1797


def test_pruned_network_comes_back_equal_to_the_shipped_file(run):
    small = load_model(str(run.folder))
    images = small.example(16, seed=5)
    with torch.no_grad():
        expected = small.logits(images).numpy()
    session = onnxruntime.InferenceSession(run.folder / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy()})[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_two_runs_give_equal_files(run, quick, tmp_path):
    again = prune_and_export(quick, tmp_path / "again")
    for name in KEPT_BYTE_FOR_BYTE:
        assert sha256_file(again.folder / name) == sha256_file(run.folder / name), name


def test_resume_takes_what_is_there_and_redoes_what_changed(run, quick, tmp_path, recorder):
    folder = tmp_path / "resumed"
    shutil.copytree(run.folder, folder)
    before = {name: sha256_file(folder / name) for name in KEPT_BYTE_FOR_BYTE}
    observer = recorder()
    prune_and_export(quick, folder, resume=True, observer=observer)
    assert observer.skips == [
        "explain",
        "sensitivity",
        "plan",
        "repair",
        "recover",
        "export",
        "time of plan",
        "accuracy",
        "latency",
    ]
    assert {name: sha256_file(folder / name) for name in KEPT_BYTE_FOR_BYTE} == before
    observer = recorder()
    prune_and_export(quick.override(macs=0.7), folder, resume=True, observer=observer)
    assert observer.skips == ["explain", "sensitivity"]


def test_resume_sees_other_pixels_and_an_edited_network(tmp_path, recorder):
    """The same names and labels, the same weights: what is in the pictures and in forward counts as well."""
    source = tmp_path / "own.py"
    text = """
import torch
from torch import nn
INPUT_SHAPE = (3, 8, 8)
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)
    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(x.mean((2, 3)))
def build():
    torch.manual_seed(0)
    return Net()
def data():
    noise = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    pairs = [(image, index % 2) for index, image in enumerate(noise)]
    return {"train": pairs[:20], "val": pairs[20:30], "test": pairs[30:]}
"""
    recipe = Recipe().override(page=False, model=f"{source}:build", data=f"{source}:data", epochs=0, calibration=10)
    recipe = replace(recipe, measurement=replace(recipe.measurement, batches=(1,)))
    skips = []
    for edited in (
        text,
        text,
        text.replace("torch.relu(self.b", "torch.tanh(self.b"),
        text.replace("manual_seed(3)", "manual_seed(4)"),
    ):
        source.write_text(edited)
        observer = recorder()
        prune_and_export(recipe, tmp_path / "out", resume=True, observer=observer)
        skips.append(observer.skips)
    assert skips[0] == skips[2] == skips[3] == []
    assert len(skips[1]) == 8


def test_a_failed_run_leaves_the_earlier_one_whole(run, tmp_path):
    folder = tmp_path / "kept"
    shutil.copytree(run.folder, folder)
    before = {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UsageError):
        prune_and_export(Recipe().override(rank_by="nonsense"), folder)
    with pytest.raises(InputError):
        prune_and_export(Recipe().override(data=str(tmp_path / "absent")), folder)
    with pytest.raises(UsageError):
        prune_and_export(Recipe().override(round_to=4096), folder)
    assert {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()} == before


def test_gates_decide_the_exit_code(run, quick, tmp_path):
    folder = tmp_path / "gated"
    shutil.copytree(run.folder, folder)
    gates = GateSettings(require_drop_below=50, require_speedup=1000)
    result = prune_and_export(replace(quick, gates=gates), folder, resume=True)
    assert result.exit_code == ExitCode.GATE_FAILED
    verdicts = {gate["name"]: gate["verdict"] for gate in result.report["gates"]}
    assert verdicts == {"budget": "pass", "drop": "pass", "speedup": "fail"}
    assert 'failures="1"' in (folder / "junit.xml").read_text()


def test_a_budget_out_of_reach_fails_before_anything_is_ranked(tmp_path, recorder):
    observer = recorder()
    with pytest.raises(BudgetError, match=r"macs 0\.0005 cannot be reached.*Give --macs 0\.000879 or more") as raised:
        prune_and_export(Recipe().override(page=False, macs=0.0005, epochs=0), tmp_path / "narrow", observer=observer)
    assert raised.value.exit_code == ExitCode.GATE_FAILED
    assert observer.started == ["load", "channels"]
    assert any("Lowest budgets that can be reached" in line for line in observer.told)
    assert not [path for path in (tmp_path / "narrow").iterdir() if path.is_file() and path.name[0] != "."]


def test_with_best_effort_a_budget_out_of_reach_is_missed_as_little_as_can_be(tmp_path):
    settings = Recipe().override(page=False, macs=0.0005, epochs=0, repair="none", best_effort=True, batches=(1,))
    result = prune_and_export(settings, tmp_path / "narrow")
    assert result.exit_code == ExitCode.OK
    (gate,) = result.report["gates"]
    assert gate["verdict"] == "best effort"
    assert "narrowest" in gate["meaning"]
    assert gate["value"] == pytest.approx(result.report["locked"]["lowest"]["macs"])
    (lock,) = result.report["locked"]["locks"]
    assert [group["name"] for group in lock["groups"]] == ["head"]
    jsonschema.validate(json.loads((tmp_path / "narrow" / "report.json").read_text()), schema())
    assert 'failures="0"' in (tmp_path / "narrow" / "junit.xml").read_text()
    page, text = ((tmp_path / "narrow" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "No gate failed; the budget was missed" in page
    assert "passed, budget missed (best effort)" in text
    lowest = ", ".join(f"--{name} {rounded_up(value):g}" for name, value in result.report["locked"]["lowest"].items())
    for shown in (page, text):
        assert lowest in shown


def test_test_images_decide_nothing(run, quick, tmp_path):
    """With every test label wrong, ranking, plan and weights stay as they are."""
    source = tmp_path / "poisoned.py"
    source.write_text(
        "import torch\n"
        "from secateur.network.digits import build_digits_network\n"
        "from secateur.network.images.digits_images import load_digits_splits\n"
        "from secateur.network.images.load import Preprocessing\n"
        "def data(wrong=False):\n"
        "    _, shape, mean, std, _, names = build_digits_network(with_weights=False)\n"
        "    splits = load_digits_splits(Preprocessing(shape, mean, std))\n"
        "    def pairs(images, shift):\n"
        "        labels = (images.labels + shift) % 10\n"
        "        return [(pixels, int(label)) for pixels, label in zip(images.pixels(), labels)]\n"
        "    return {'train': pairs(splits.train, 0), 'val': pairs(splits.validation, 0),\n"
        "            'test': pairs(splits.test, 1 if wrong else 0), 'class_names': names}\n"
        "def poisoned():\n"
        "    return data(wrong=True)\n"
    )
    names = ("scores.safetensors", "plan.json", "model.safetensors")
    hashes = []
    for function in ("data", "poisoned"):
        result = prune_and_export(quick.override(data=f"{source}:{function}"), tmp_path / function)
        hashes.append([sha256_file(result.folder / name) for name in names])
    assert hashes[0] == hashes[1]
    assert result.report["baseline"]["accuracy"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "allocation", "repair", "epochs"),
    [
        ("resnet18", "sensitivity", "reconstruct", 1),
        pytest.param("mobilenet_v2", "sensitivity", "reconstruct", 1, marks=pytest.mark.long),
        # the large ones without what takes them longest
        pytest.param("vgg16_bn", "uniform", "bn", 0, marks=pytest.mark.long),
        pytest.param("densenet121", "uniform", "bn", 0, marks=pytest.mark.long),
    ],
)
def test_torchvision_networks_go_through_the_whole_line(architecture, allocation, repair, epochs, tmp_path):
    factory = tmp_path / "factory.py"
    factory.write_text(
        "from torchvision.models import get_model\n"
        "INPUT_SHAPE = (3, 64, 64)\n"
        "NORMALISATION = {'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.25, 0.25)}\n"
        f"def build():\n    return get_model({architecture!r}, weights=None, num_classes=3)\n"
        "def data():\n"
        "    import torch\n"
        "    noise = torch.randint(0, 256, (36, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))\n"
        "    pairs = [(image, index % 3) for index, image in enumerate(noise)]\n"
        "    return {'train': pairs[:18], 'val': pairs[18:24], 'test': pairs[24:]}\n"
    )
    recipe = Recipe().override(
        page=False,
        model=f"{factory}:build",
        data=f"{factory}:data",
        macs=0.6,
        calibration=12,
        repair=repair,
        epochs=epochs,
        seed=1,
        allocation=allocation,
    )
    recipe = replace(
        recipe,
        recovery=replace(recipe.recovery, batch_size=6),
        measurement=replace(recipe.measurement, batches=(1,)),
    )
    result = prune_and_export(recipe, tmp_path / "out")
    ratios = result.report["ratios"]
    assert 1 / 0.6 <= ratios["macs"] <= 1 / 0.57
    # Untrained networks with twelve calibration images are badly conditioned: float64 says what float32 can reach.
    small = load_model(str(result.folder))
    images = small.example(4)
    with torch.no_grad():
        single = small.logits(images).double()
        exact = replace(small, module=small.module.double()).logits(images.double())
    session = onnxruntime.InferenceSession(result.folder / "model.onnx", providers=["CPUExecutionProvider"])
    shipped = torch.tensor(session.run(None, {"images": images.numpy()})[0]).double()
    scale = float(exact.abs().max())
    assert float((shipped - exact).abs().max()) <= 20 * float((single - exact).abs().max()) + 1e-6 * scale
    assert result.report["parity"]["max_relative_difference"] <= 1e-4
    head = result.report["layers"][-1]
    assert head["before"] == head["after"] == 3
    assert Path(result.folder / "model.onnx").stat().st_size < Path(result.folder / "baseline.onnx").stat().st_size


@pytest.mark.slow
def test_cifar_resnet_with_zero_padding_shortcuts(shared, cifar, tmp_path):
    """Real weights and real images: the old-format checkpoint's architecture, residual streams open to the cut."""
    recipe = Recipe().override(
        page=False,
        model=f"{shared}/models/resnet_cifar.py:resnet20",
        weights=f"{shared}/models/resnet20-cifar10-jpeg.pth",
        data=str(cifar),
        macs=0.67,
        repair="bn",
        epochs=0,
        calibration=200,
    )
    result = prune_and_export(recipe, tmp_path / "out")
    assert result.report["ratios"]["macs"] >= 1 / 0.67
    locked = [layer["name"] for layer in result.report["layers"] if layer["locked"]]
    assert locked == ["linear"]
    assert result.report["baseline"]["accuracy"] > 0.75
    assert result.report["pruned"]["accuracy"] > 0.4
    back = load_model(str(tmp_path / "out"))
    assert back.logits(back.example()).shape == (2, 10)
