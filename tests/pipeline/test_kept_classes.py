"""``--keep-classes`` and ``--drop-classes`` through the whole line."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from secateur import load_model, prune_and_export
from secateur.export.onnx.model import read_metadata
from secateur.network.images.digits_images import load_digits_splits
from secateur.pipeline.recipe.recipe import Recipe
from shell import secateur


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "run"
    recipe = Recipe().override(
        page=False, epochs=0, calibration=200, keep_classes=("7", "1", "4"), allocation="uniform"
    )
    recipe = replace(recipe, measurement=replace(recipe.measurement, batches=(1,)))
    return out, prune_and_export(recipe, out).report


def scores_of(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_the_files_have_the_kept_classes_alone(run):
    out, report = run
    network = load_model("digits")
    test = load_digits_splits(network.preprocessing).test
    rows = torch.tensor([label in (1, 4, 7) for label in test.labels.tolist()]).nonzero().flatten()
    x = test.preprocessing.normalise(test.pixels(rows))
    for name in ("baseline.onnx", "model.onnx"):
        scores = scores_of(out / name, x.numpy())
        assert scores.shape == (len(rows), 3)
        assert read_metadata(out / name)["class_names"] == ["1", "4", "7"]
    with torch.no_grad():
        whole = network.logits(x)[:, [1, 4, 7]]
    assert np.abs(scores_of(out / "baseline.onnx", x.numpy()) - whole.numpy()).max() < 1e-4, "the original's own scores"
    labels = torch.tensor([(1, 4, 7).index(int(label)) for label in test.labels[rows]])
    assert report["baseline"]["accuracy"] == pytest.approx(float((whole.argmax(1) == labels).double().mean()))
    assert report["drop"]["images"] == len(rows)
    assert set(report["pruned"]["accuracy_per_class"]) == {"1", "4", "7"}
    assert any("Kept classes: 1, 4, 7 (3 of 10)" in note for note in report["notes"])


def test_the_pruned_network_comes_back_with_its_classes(run):
    small = load_model(str(run[0]))
    assert small.class_names == ("1", "4", "7")
    assert len(small.cuts) == 2


def test_dropping_the_others_is_the_same(run, tmp_path):
    recipe = Recipe.read(run[0] / "recipe.toml")
    dropped = tuple(name for name in "0235689")
    recipe = replace(recipe, data=replace(recipe.data, keep_classes=None, drop_classes=dropped))
    prune_and_export(recipe, tmp_path / "run")
    for name in ("plan.json", "model.onnx", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run[0] / name).read_bytes()


def test_step_by_step_the_classes_stay_chosen(tmp_path):
    out = tmp_path / "run"
    code, _, error = secateur("explain", "--keep-classes", "3,8", "--calibration", 100, "--out", out, "-q")
    assert code == 0, error
    for command in (("plan", "--allocation", "uniform"), ("prune", "--epochs", 0), ("export",)):
        code, _, error = secateur(*command, "--out", out, "-q")
        assert code == 0, error
    for name in ("baseline.onnx", "model.onnx"):
        assert scores_of(out / name, np.zeros((1, 1, 8, 8), np.float32)).shape == (1, 2)
    code, _, error = secateur("plan", "--explain", "head", "--out", out)
    assert code == 0, error


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--keep-classes", "1,2", "--drop-classes", "3"), 2, "give one"),
        (("--keep-classes", "1,1"), 2, "each once"),
        (("--keep-classes", ","), 2, "one class or more"),
        (("--keep-classes", "1,one"), 3, "No class is named 'one'"),
        (("--drop-classes", "0,1,2,3,4,5,6,7,8"), 3, "1 of 10 classes would be left"),
    ],
)
def test_what_cannot_be_kept_is_said(tmp_path, arguments, code, said):
    found, _, error = secateur("prune-and-export", *arguments, "--out", tmp_path / "run")
    assert found == code
    assert said in " ".join(error.split())


def test_the_recipe_holds_the_names(run, tmp_path):
    text = (run[0] / "recipe.toml").read_text()
    assert json.dumps(["7", "1", "4"]).replace(" ", "") in text.replace(" ", "").replace("\n", "").replace(",]", "]")
    (tmp_path / "wrong.toml").write_text("[data]\nkeep_classes = [1, 2]\n")
    code, _, error = secateur("prune-and-export", "--recipe", tmp_path / "wrong.toml", "--out", tmp_path / "run")
    assert code == 3
    assert "list of names" in error
