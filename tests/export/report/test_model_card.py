"""The model card: its front matter by YAML and by huggingface_hub, its code by running it; and the benchmark's JSON."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from secateur import load_model
from secateur.export.onnx.model import export_onnx
from secateur.export.report.benchmark_json import bigger_is_better, smaller_is_better
from secateur.export.report.model_card import front_matter, yaml_of
from secateur.export.report.rendering import to_model_card
from secateur.network.images.load import load_images
from secateur.network.settings import ModelSettings


def split(card):
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.fixture(scope="module")
def card(report):
    return to_model_card(report)


def test_front_matter_is_yaml_and_says_what_was_measured(report, card):
    front, text = split(card)
    assert front == front_matter(report)
    assert front["pipeline_tag"] == "image-classification"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == report["pruned"]["accuracy"]
    assert text.lstrip().startswith("# ")
    for title in ("How to use it", "Evaluation", "How it was made", "Limits"):
        assert f"## {title}" in text
    assert "<script>" not in text
    assert "(-3.00 to -1.00)" in text


def test_huggingface_hub_reads_the_same_results(report, card):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card).data
    (result,) = data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == ("image-classification", "accuracy", 0.88)
    assert data.library_name == "onnx"


@pytest.mark.parametrize(
    "value", [{"a": [{"b": 1, "c": ["x: y", "#", "é\n"]}, {"d": None}]}, {"a": {"b": True, "c": 0.1}}]
)
def test_yaml_is_read_back(value):
    assert yaml.safe_load(yaml_of(value)) == value


@pytest.mark.parametrize("input_type", ["float32", "uint8"])
def test_the_code_of_the_card_classifies_as_the_network_does(card, tmp_path, input_type):
    network = load_model(ModelSettings("digits"))
    export_onnx(network, tmp_path / "model.onnx", input_type=input_type)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (tmp_path / "classify.py").write_text(code, encoding="utf-8")
    test = load_images("digits", network.preprocessing, seed=0).test
    pixels = np.array(test.pixels())[:6, 0]
    pixels = pixels if pixels.dtype == np.uint8 else np.round(255 * pixels).astype(np.uint8)
    names = []
    for index, picture in enumerate(pixels):
        names.append(f"{index}.png")
        Image.fromarray(picture).resize((40, 48) if index == 5 else picture.shape[::-1]).save(tmp_path / names[-1])
    done = subprocess.run(
        [sys.executable, "classify.py", *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    for name, row in zip(names, rows, strict=True):
        with Image.open(tmp_path / name) as picture:
            prepared = network.preprocessing.normalise(network.preprocessing.to_pixels(picture)[None])
        probabilities = network.logits(prepared).detach().softmax(1)[0]
        assert row[:2] == [name, network.class_names[int(probabilities.argmax())]]
        assert float(row[2]) == pytest.approx(float(probabilities.max()), abs=1e-3)


@pytest.mark.parametrize("entries_of", [smaller_is_better, bigger_is_better])
def test_benchmark_entries_have_the_form_that_the_action_reads(report, entries_of):
    entries = json.loads(json.dumps(entries_of(report)))
    assert len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        assert {"name", "unit", "value"} <= set(entry) <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(entry["value"], int | float)
        assert all(isinstance(entry[key], str) for key in entry if key != "value")


def test_benchmark_entries_say_what_the_report_says(report):
    smaller = {entry["name"]: entry for entry in smaller_is_better(report)}
    bigger = {entry["name"]: entry for entry in bigger_is_better(report)}
    assert smaller["latency, batch 1"]["value"] == 1.0
    assert smaller["model.onnx"]["value"] == 4096
    assert bigger["speedup, batch 1"] == {
        "name": "speedup, batch 1", "unit": "x", "value": 1.4, "extra": "cpu, p, 2 cores", "range": "± 0.1",
    }  # fmt: skip
    assert bigger["top-1 accuracy"]["value"] == pytest.approx(88)
