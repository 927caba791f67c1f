"""Sessions: the options they are opened with, where their nodes run, and what is refused. A GPU stands in as a fake."""

import sys

import numpy as np
import pytest
import torch

from secateur.common.errors import InputError, MachineError, UsageError
from secateur.export.onnx.model import export_onnx
from secateur.export.runtime import bound_runs as binding
from secateur.export.runtime import session as runtime
from secateur.export.runtime.classifier import read_classifier
from secateur.export.runtime.providers import CudaOptions
from secateur.export.runtime.session import SessionSettings, node_placement, open_session
from secateur.network.load import load_model


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("runtime") / "digits.onnx"
    export_onnx(load_model("digits"), path)
    return path


def test_every_node_is_placed(digits):
    placed = node_placement(digits, "cpu", {"images": np.zeros((1, 1, 8, 8), np.float32)})
    assert list(placed) == ["cpu"]
    assert placed["cpu"] >= 8


@pytest.mark.parametrize(
    ("provider", "settings", "expected"),
    [
        ("cpu", SessionSettings(), ["CPUExecutionProvider"]),
        (
            "cuda",
            SessionSettings(),
            [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "1"})],
        ),
        (
            "cuda",
            SessionSettings(cuda=CudaOptions("HEURISTIC", channels_last=False, fused_biases=True)),
            [
                (
                    "CUDAExecutionProvider",
                    {"cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "0", "fuse_conv_bias": "1"},
                )
            ],
        ),
        (
            "cuda",
            SessionSettings(cuda_graphs=True),
            [
                (
                    "CUDAExecutionProvider",
                    {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "1", "enable_cuda_graph": "1"},
                )
            ],
        ),
    ],
)
def test_providers_and_their_options(provider, settings, expected):
    assert runtime._providers(provider, b"", settings) == expected


def test_tensorrt_is_told_what_the_file_holds(digits):
    first, second = runtime._providers("tensorrt", str(digits), SessionSettings(cuda_graphs=True))
    assert first == (
        "TensorrtExecutionProvider",
        {"trt_fp16_enable": "False", "trt_int8_enable": "False", "trt_cuda_graph_enable": "True"},
    )
    assert second[0] == "CUDAExecutionProvider"


def test_tensorrts_libraries_are_loaded_from_their_package(tmp_path, monkeypatch):
    """ONNX Runtime does not look where pip puts them; the package loads them when it is imported."""
    (tmp_path / "tensorrt_libs.py").write_text("loaded = True")
    monkeypatch.syspath_prepend(tmp_path)
    runtime._preload.cache_clear()
    runtime._preload("cuda")
    assert "tensorrt_libs" not in sys.modules
    runtime._preload("tensorrt")
    assert sys.modules.pop("tensorrt_libs").loaded
    runtime._preload.cache_clear()


def test_a_session_that_runs_elsewhere_is_caught(digits, monkeypatch):
    class Elsewhere:
        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(runtime, "start_session", lambda *args, **kwargs: Elsewhere())
    with pytest.raises(MachineError, match="was requested to run on cuda, but its session runs on CPU"):
        open_session(digits, "cuda")


def test_graphs_need_a_gpu(digits):
    with pytest.raises(UsageError, match="CUDA graphs"):
        open_session(digits, "cpu", SessionSettings(cuda_graphs=True))


def test_bound_runs_give_what_a_plain_run_gives(digits):
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32)
    classifier = read_classifier(digits)
    runs = binding.bind(classifier, images, 10, "cpu", SessionSettings(1))
    plain = runs.end_to_end()
    runs.on_device()
    assert np.array_equal(plain, classifier.run(open_session(digits).session, images))


def test_graphs_run_through_the_same_buffers_every_time(digits, monkeypatch):
    """A session that records what it is bound to: two runs of a graph must see the same places."""
    real = open_session(digits)
    monkeypatch.setattr(binding, "open_session", lambda path, provider, settings: real)
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32)
    classifier = read_classifier(digits)
    runs = binding.bind(classifier, images, 10, "cpu", SessionSettings(1, cuda_graphs=True))
    first = runs.end_to_end().copy()
    assert np.allclose(first, classifier.run(real.session, images), atol=1e-5)
    assert np.array_equal(runs.end_to_end(), first)


def test_weights_beside_the_file_are_found(digits, tmp_path):
    import onnx

    onnx.save(
        onnx.load(digits),
        tmp_path / "split.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=64,
    )
    assert (tmp_path / "weights.bin").stat().st_size > 100_000
    images = np.random.default_rng(0).standard_normal((3, 1, 8, 8), dtype=np.float32)
    both = [read_classifier(path).run(open_session(path).session, images) for path in (digits, tmp_path / "split.onnx")]
    assert np.array_equal(*both)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"split\.onnx"):
        open_session(tmp_path / "split.onnx")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_gives_the_same_classes(digits, graphs):
    images = np.random.default_rng(0).standard_normal((8, 1, 8, 8), dtype=np.float32)
    classifier = read_classifier(digits)
    runs = binding.bind(classifier, images, 10, "cuda", SessionSettings(cuda_graphs=graphs))
    expected = classifier.run(open_session(digits).session, images)
    for _ in range(3):
        assert np.allclose(runs.end_to_end(), expected, atol=1e-2)
    assert node_placement(digits, "cuda", classifier.feed(images))["cuda"] > 0
