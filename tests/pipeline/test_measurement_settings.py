"""The main job with other settings of the measurement: pixels as input, latency on the device, times of torch."""

import json

import jsonschema
import numpy as np
import onnxruntime
import pytest
import torch

from secateur import load_model, prune_and_export
from secateur.cli.tools.bench import BenchSettings, bench
from secateur.common.errors import InputError
from secateur.common.progress import Observer
from secateur.export.onnx.model import read_metadata
from secateur.export.report.content import schema
from secateur.network.images.load import load_images
from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.single_commands import export_into

QUICK = Recipe().override(page=False, epochs=0, repair="none", rank_by="magnitude", allocation="uniform", batches=(1,))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = QUICK.override(
        input="uint8", precisions=("fp32", "int8"), torch_times=True, latency_of="device", require_speedup=0.01
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module, dynamic, mode: module)
        return prune_and_export(recipe, tmp_path_factory.mktemp("pixels") / "out")


def test_every_file_takes_pixels_and_the_report_counts_what_they_classify(run):
    report = json.loads((run.folder / "report.json").read_text())
    jsonschema.validate(report, schema())
    assert report["recipe"]["measurement"]["input"] == "uint8"
    test = load_images("digits", load_model("digits").preprocessing).test
    for row in report["variants"]:
        session = onnxruntime.InferenceSession(run.folder / row["file"], providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].type == "tensor(uint8)"
        (scores,) = session.run(None, {"images": test.pixels().numpy()})
        assert row["accuracy"] == np.mean(scores.argmax(1) == test.labels.numpy())
        assert read_metadata(run.folder / row["file"])["input_type"] == "uint8"


def test_the_gate_means_the_latency_on_the_device(run):
    (gate,) = [gate for gate in run.report["gates"] if gate["name"] == "speedup"]
    assert gate["value"] == run.report["ratios"]["device_latency"]["1"]["low"]
    assert "on the device" in gate["meaning"]
    assert run.report["variants"][2]["device_speedup"]["1"] == run.report["ratios"]["device_latency"]["1"]


def test_torch_is_timed_beside_the_files(run):
    found = run.report["torch_times"]
    assert [(row["runtime"], row["precision"], row["batch"]) for row in found["rows"]] == [
        (name, "fp32", 1) for name in ("onnxruntime", "torch", "torch.compile")
    ]
    assert found["notes"] == []
    for name in ("report.md", "report.html"):
        assert "torch, eager" in (run.folder / name).read_text()


def test_the_single_command_exports_as_the_recipe_says_or_as_the_option_does(run):
    for asked, expected in ((None, "uint8"), ("float32", "float32")):
        for model in export_into(None, run.folder, Observer(), asked):
            assert read_metadata(model.path)["input_type"] == expected


def test_bench_compares_pixels_with_normalised_images(run, tmp_path):
    (floats,) = export_into(QUICK.model, tmp_path, Observer())
    (pixels,) = [
        tmp_path / "pixels" / model.path.name
        for model in export_into(QUICK.model, tmp_path / "pixels", Observer(), "uint8")
    ]
    found = bench(floats.path, pixels, BenchSettings((1,), data="digits", provider="cpu"), Observer())
    assert found.drop.points == 0
    assert found.accuracies[0].accuracy > 0.95


def test_images_that_are_no_pictures_are_refused_before_any_work(tmp_path):
    source = tmp_path / "noise.py"
    source.write_text(
        "import torch\n\n"
        "def data():\n"
        "    generator = torch.Generator().manual_seed(0)\n"
        "    rows = [(torch.rand(1, 8, 8, generator=generator), index % 10) for index in range(60)]\n"
        "    return {'train': rows, 'test': rows, 'val': rows, 'class_names': [str(digit) for digit in range(10)]}\n"
    )
    with pytest.raises(InputError, match="not pictures of eight bits"):
        prune_and_export(QUICK.override(input="uint8", data=f"{source}:data", calibration=10), tmp_path / "out")
