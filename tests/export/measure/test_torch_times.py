"""Torch beside ONNX Runtime: the same scores, every runtime in turns, and notes on what does not run."""

from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

from secateur.export.measure import latency, torch_times
from secateur.export.measure.latency import TimingSettings, compare_runs
from secateur.export.measure.torch_times import TorchTask, measure_torch_times
from secateur.export.onnx.model import export_onnx
from secateur.export.onnx.precision import to_precision
from secateur.export.runtime.bound_runs import BoundRuns
from secateur.export.runtime.classifier import read_classifier
from secateur.network.images.load import load_images
from secateur.network.load import load_model


@pytest.fixture(scope="module")
def network():
    return load_model("digits")


@pytest.fixture(scope="module")
def task(network, tmp_path_factory):
    """Both sides are the digits network, in files of their own."""
    folder = tmp_path_factory.mktemp("torch")
    files = {"fp32": (folder / "a.onnx", folder / "b.onnx"), "fp16": (folder / "a16.onnx", folder / "b16.onnx")}
    calibration = load_images("digits", network.preprocessing).train.sample(8, 0)
    for whole, half in zip(*files.values(), strict=True):
        export_onnx(network, whole)
        to_precision(whole, half, "fp16", calibration)
    return TorchTask((network, network), files, TimingSettings("cpu", 1))


@pytest.fixture
def compilers(monkeypatch):
    """torch.compile, as the test says."""
    return lambda compiled: monkeypatch.setattr(torch, "compile", compiled)


def test_every_runtime_and_precision_at_every_batch_size(task, compilers, schema_of_reports):
    seen = []
    compilers(lambda module, dynamic, mode: seen.append((dynamic, mode)) or module)
    before = torch.get_num_threads()
    found = measure_torch_times(task, (1, 3))
    assert torch.get_num_threads() == before
    assert found.notes == ()
    names = ("onnxruntime", "torch", "torch.compile")
    rows = [(row.precision, row.comparison.batch, row.runtime) for row in found.rows]
    assert rows == [(precision, batch, name) for precision in ("fp32", "fp16") for batch in (1, 3) for name in names]
    assert set(seen) == {(False, "default")}
    for row in found.rows:
        assert row.comparison.ratio.low <= row.comparison.ratio.ratio <= row.comparison.ratio.high
        assert (row.comparison.sessions > 1) == (row.runtime == "onnxruntime")
    part = {"$defs": schema_of_reports["$defs"], **schema_of_reports["properties"]["torch_times"]}
    jsonschema.validate(found.to_json(), part)


@pytest.mark.slow
def test_a_network_that_torch_compiles(task):
    files = {"fp32": task.files["fp32"]}
    found = measure_torch_times(replace(task, files=files), (2,))
    assert [row.runtime for row in found.rows] == ["onnxruntime", "torch", "torch.compile"], found.notes


def test_what_a_compiler_cannot_do_is_a_note(task, compilers):
    def fails(module, dynamic, mode):
        raise RuntimeError("no compiler here\nand more lines")

    compilers(fails)
    found = measure_torch_times(replace(task, files={"fp32": task.files["fp32"]}), (1,))
    assert [row.runtime for row in found.rows] == ["onnxruntime", "torch"]
    assert found.notes == ("torch.compile, fp32, batch 1: RuntimeError: no compiler here",)


@pytest.mark.parametrize("wrong", [lambda scores: scores + 5, lambda scores: scores * float("nan")])
def test_other_scores_are_a_note_and_no_time(task, compilers, wrong):
    compilers(lambda module, dynamic, mode: lambda images: wrong(module(images)))
    found = measure_torch_times(replace(task, files={"fp32": task.files["fp32"]}), (1,))
    assert [row.runtime for row in found.rows] == ["onnxruntime", "torch"]
    assert "class scores differ" in found.notes[0]


def test_torch_normalises_the_pixels_of_files_that_take_them(network, tmp_path):
    path = export_onnx(network, tmp_path / "pixels.onnx", input_type="uint8").path
    settings = TimingSettings("cpu", 1)
    whole = torch_times._whole(network, read_classifier(path), torch.float32, settings)
    pixels = read_classifier(path).noise(4, network.input_shape)
    found = torch_times._torch_runs(whole, pixels, "cpu").end_to_end()
    expected = network.logits(network.preprocessing.normalise(torch.from_numpy(pixels))).detach().numpy()
    assert np.allclose(found, expected, atol=1e-4)


def test_half_precision_gives_its_scores_in_float32(network, task):
    whole = torch_times._whole(network, read_classifier(task.files["fp16"][0]), torch.float16, task.settings)
    kinds = {parameter.dtype for parameter in whole.parameters()}
    assert kinds == {torch.float16}
    assert torch_times._torch_runs(whole, network.example(2).numpy(), "cpu").end_to_end().dtype == np.float32
    assert all(parameter.dtype == torch.float32 for parameter in network.module.parameters()), "a copy was converted"


def test_pairs_are_compared_within_one_run(monkeypatch):
    """Four sides that take 4, 2, 9 and 3 ms by a clock that we set."""
    now = [0.0]

    def opened(side):
        def run(scale=1.0):
            now[0] += scale * (4e-3, 2e-3, 9e-3, 3e-3)[side]

        return BoundRuns(run, lambda: run(0.5))

    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    found = compare_runs(opened, 4, 8, pairs=[(0, 1), (2, 3)])
    assert [one.ratio.ratio for one in found] == pytest.approx([2, 3])
    assert [one.baseline.median_ms for one in found] == pytest.approx([4, 9])
    assert [one.pruned.device_median_ms for one in found] == pytest.approx([1, 1.5])
    assert found[1].noise_floor.ratio == pytest.approx(1)
    first, second, third = compare_runs(opened, 4, 8)
    assert [one.ratio.ratio for one in (first, second, third)] == pytest.approx([2, 4 / 9, 4 / 3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_card(task, graphs):
    found = measure_torch_times(replace(task, settings=TimingSettings("cuda", cuda_graphs=graphs)), (1, 8))
    assert {"onnxruntime", "torch"} <= {row.runtime for row in found.rows}
    module = torch_times._whole(
        task.networks[0], read_classifier(task.files["fp32"][0]), torch.float32, TimingSettings("cuda")
    )
    kernels = [child.weight for child in module.modules() if isinstance(child, nn.Conv2d)]
    assert all(weight.is_cuda and weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
