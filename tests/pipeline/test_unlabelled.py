"""Folders without labels: the network's own predictions rank, plan, repair, fine-tune and, if need be, test."""

import json
import shutil
from dataclasses import replace

import jsonschema
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from secateur import load_model, prune_and_export
from secateur.cli.tools.bench import BenchSettings, bench
from secateur.common.files import sha256_file
from secateur.explain.unit_scores import UnitScores
from secateur.export.report.content import schema
from secateur.export.report.tables import closing_rows
from secateur.export.settings import GateSettings
from secateur.network.channels.follow import find_groups
from secateur.network.images.load import load_images
from secateur.pipeline.inputs import load_inputs
from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.single_commands import explain_into, export_into, plan_into, prune_into
from secateur.prune.repair.repair import repair
from secateur.prune.surgery import cut
from secateur.prune.widths.measure_sensitivity import measure_sensitivity

FILES = ("plan.json", "scores.safetensors", "sensitivity.json", "model.safetensors", "model.onnx")


@pytest.fixture(scope="module")
def digits():
    """400 training and 150 test digits as (pictures, true labels, what the network says), by a loop of its own."""
    network = load_model("digits")
    splits = load_images("digits", network.preprocessing)
    mean, std = network.preprocessing.mean[0], network.preprocessing.std[0]
    found = {}
    for name, part, count in (("train", splits.train, 400), ("test", splits.test, 150)):
        pictures = part.pixels()[:count, 0].numpy()
        with torch.no_grad():
            logits = [network.module(((torch.from_numpy(p) / 255 - mean) / std)[None, None]) for p in pictures]
        found[name] = (pictures, part.labels[:count].tolist(), [int(one.argmax()) for one in logits])
    return found


def write(root, digits, where):
    """Write both splits; ``where`` gives, by split, the path of a picture from (index, true label, predicted label)."""
    for split, name in where.items():
        for index, (picture, true, own) in enumerate(zip(*digits[split], strict=True)):
            path = root / split / name(index, true, own)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture, "L").save(path)
    return root


def by_truth(index, true, own):
    return f"{true}/{index:04}.png"


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory):
    """Folders whose pictures come in one order: without labels (named so that they sort by class), and labelled."""
    root = tmp_path_factory.mktemp("digits")
    return {
        "bare": write(root / "bare", digits, {"train": lambda i, t, o: f"{o}-{i:04}.png", "test": by_truth}),
        "own": write(root / "own", digits, {"train": lambda i, t, o: f"{o}/{i:04}.png", "test": by_truth}),
        "wrong": write(
            root / "wrong", digits, {"train": lambda i, t, o: f"{(o + 1) % 10}/{i:04}.png", "test": by_truth}
        ),
        "none": write(
            root / "none", digits, {"train": lambda i, t, o: f"{o}-{i:04}.png", "test": lambda i, t, o: f"{i:04}.png"}
        ),
    }


@pytest.fixture(scope="module")
def recipe():
    recipe = Recipe().override(page=False, epochs=1, calibration=150, macs=0.4)
    return replace(recipe, measurement=replace(recipe.measurement, batches=(1,)))


@pytest.fixture(scope="module")
def bare(data, recipe, tmp_path_factory):
    return prune_and_export(recipe.override(data=str(data["bare"])), tmp_path_factory.mktemp("bare") / "out")


def test_unlabelled_training_pictures_give_what_their_own_predictions_as_labels_give(bare, data, recipe, tmp_path):
    """Calibration, carving, ranking, sensitivities, repair and fine-tuning: every file is the same."""
    own = prune_and_export(recipe.override(data=str(data["own"])), tmp_path / "own")
    for name in FILES:
        assert sha256_file(own.folder / name) == sha256_file(bare.folder / name), name
    for field in ("baseline", "pruned"):
        assert own.report[field]["accuracy"] == bare.report[field]["accuracy"]
    assert own.report["inputs"]["unlabelled"] == []
    assert bare.report["inputs"]["unlabelled"] == ["train", "validation"]


def test_labels_of_the_test_split_still_measure(bare, digits, data):
    report = bare.report
    jsonschema.validate(json.loads((bare.folder / "report.json").read_text()), schema())
    assert report["accuracy_against"] == "labels"
    _, truth, own = digits["test"]
    assert report["baseline"]["accuracy"] == np.mean(np.array(truth) == np.array(own))
    assert "top-1 accuracy" in (bare.folder / "report.md").read_text()
    assert any("No labels for the training images" in note for note in report["notes"])
    page = (bare.folder / "report.html").read_text()
    assert "validation agreement" in page
    assert "test images have no labels" not in page


def test_resume_goes_by_the_labels(bare, data, recipe, tmp_path, recorder):
    """Labels of the network's own change nothing and all is taken; other labels change what every stage is kept by."""
    folder = tmp_path / "out"
    shutil.copytree(bare.folder, folder)
    observer = recorder()
    prune_and_export(recipe.override(data=str(data["own"])), folder, resume=True, observer=observer)
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
    bare_content, wrong_content = (
        load_inputs(recipe.override(data=str(data[name]))).content for name in ("bare", "wrong")
    )
    assert {name for name in bare_content if bare_content[name] == wrong_content[name]} == {"test"}


def predicted(path, root, digits):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    preprocessing = load_model("digits").preprocessing
    pixels = torch.from_numpy(digits["test"][0]).unsqueeze(1)
    return session.run(None, {"images": preprocessing.normalise(pixels).numpy()})[0].argmax(1)


def test_without_test_labels_the_report_speaks_of_agreement(data, digits, recipe, tmp_path, recorder):
    gated = replace(
        recipe.override(data=str(data["none"]), epochs=0, macs=0.25), gates=GateSettings(require_drop_below=99)
    )
    observer = recorder()
    result = prune_and_export(gated, tmp_path / "out", observer=observer)
    report = result.report
    jsonschema.validate(json.loads((result.folder / "report.json").read_text()), schema())
    assert report["accuracy_against"] == "original"
    assert report["inputs"]["unlabelled"] == ["train", "validation", "test"]
    assert report["baseline"]["accuracy"] == 1.0
    before, after = (predicted(result.folder / name, data["none"], digits) for name in ("baseline.onnx", "model.onnx"))
    assert report["pruned"]["accuracy"] == (before == after).mean() < 1
    assert report["drop"]["points"] == pytest.approx(100 * (before != after).mean())
    for index in range(10):
        assert report["pruned"]["accuracy_per_class"][str(index)] == (after[before == index] == index).mean()

    assert closing_rows(report)[0][:2] == ("agreement with the original", "100.00%")
    assert "agreement with the original" in next(gate["meaning"] for gate in report["gates"] if gate["name"] == "drop")
    assert any("agreement with the original network's predictions" in told for told in observer.told)
    for name in ("report.md", "report.html"):
        text = (result.folder / name).read_text()
        assert "The test images have no labels" in text
        assert "agreement with the original" in text
        assert "top-1 accuracy" not in text
    assert result.exit_code == 0


def test_a_folder_of_pictures_only(digits, recipe, tmp_path):
    (tmp_path / "flat").mkdir()
    for index, picture in enumerate(np.concatenate([digits["train"][0], digits["test"][0]])):
        Image.fromarray(picture, "L").save(tmp_path / "flat" / f"{index:04}.png")
    result = prune_and_export(recipe.override(data=str(tmp_path / "flat"), epochs=0, seed=3), tmp_path / "out")
    images = result.report["inputs"]["images"]
    assert images == {"train": 396, "calibration": 150, "validation": 44, "test": 110}
    assert result.report["accuracy_against"] == "original"
    assert any("110 of 550 were drawn as test images (seed 3)" in note for note in result.report["notes"])
    assert set(result.report["baseline"]["accuracy_per_class"]) == set("0123456789")


def test_the_steps_one_by_one(data, digits, recipe, tmp_path, recorder):
    out, chosen, observer = tmp_path / "out", recipe.override(data=str(data["none"])), recorder()
    explain_into(chosen, out, observer)
    assert any("No labels for the training and test images" in told for told in observer.told)
    plan_into(chosen, out, observer)
    assert prune_into(chosen, out, observer).measure == "agreement with the original"
    export_into(None, out, observer)
    observer = recorder()
    settings = BenchSettings((1,), str(data["none"]), provider="cpu")
    rows = {row[0]: row[1:] for row in bench(out / "baseline.onnx", out / "model.onnx", settings, observer).rows()}
    assert "top-1 accuracy" not in rows
    before, after = (predicted(out / name, data["none"], digits) for name in ("baseline.onnx", "model.onnx"))
    assert rows["agreement with the first"][:2] == ("100.00%", f"{100 * (before == after).mean():.2f}%")
    assert any("predictions of the first" in told for told in observer.told)
    labelled = BenchSettings((1,), str(data["bare"]), provider="cpu")
    rows = {row[0]: row[1:] for row in bench(out / "baseline.onnx", out / "model.onnx", labelled, recorder()).rows()}
    truth = np.array(digits["test"][1])
    assert rows["top-1 accuracy"][0] == f"{100 * (before == truth).mean():.2f}%"


@pytest.mark.parametrize("kind", ["mean", "bn", "reconstruct", "distill"])
def test_repairs_read_no_label(kind, tiny, network_of, noise_images, plan_for):
    """-1 is a label that every loss and every gather of torch refuses."""
    network, images, validation = network_of(tiny("padded")), noise_images(40), noise_images(20, seed=1)
    small = cut(network, plan_for(network))
    states = []
    for poison in (False, True):
        given, judged = (
            replace(part, labels=torch.full_like(part.labels, -1)) if poison else part for part in (images, validation)
        )
        repaired, report = repair(network, small, given, kind, validation=judged)
        states.append((repaired.module.state_dict(), report.to_json()))
    assert states[0][1] == states[1][1]
    for name, tensor in states[0][0].items():
        assert torch.equal(tensor, states[1][0][name]), name


def test_sensitivities_read_no_label(tiny, network_of, noise_images):
    network, images = network_of(tiny("padded")), noise_images(40)
    groups = find_groups(network.module, network.example())
    generator = torch.Generator().manual_seed(0)
    scores = {
        group.name: UnitScores("test", torch.rand(group.units, generator=generator, dtype=torch.float64), ())
        for group in groups
        if not group.locked
    }
    poisoned = replace(images, labels=torch.full_like(images.labels, -1))
    assert measure_sensitivity(network, groups, scores, poisoned) == measure_sensitivity(
        network, groups, scores, images
    )
