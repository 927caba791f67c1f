"""float16 and int8 files, on the digits."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from secateur.common.errors import InputError
from secateur.common.files import sha256_file
from secateur.export.measure.accuracy import measure_accuracy
from secateur.export.onnx.model import export_onnx, read_metadata
from secateur.export.onnx.precision import describe, file_name, measure_agreement, to_precision
from secateur.network.images.load import load_images
from secateur.network.load import load_model


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    network = load_model("digits")
    splits = load_images("digits", network.preprocessing)
    path = tmp_path_factory.mktemp("precision") / "model.onnx"
    export_onnx(network, path, {"what": "baseline"})
    return network, splits, path


@pytest.fixture(scope="module")
def files(digits):
    _, splits, path = digits
    found = {"fp32": path}
    for precision in ("fp16", "int8"):
        found[precision] = path.with_name(file_name(path.name, precision))
        to_precision(path, found[precision], precision, splits.train.sample(128, 0))
    return found


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1)])
def test_each_agrees_with_torch_and_keeps_its_accuracy(digits, files, precision, limit):
    network, splits, _ = digits
    found = describe(files[precision], precision, network, splits.validation)
    assert found.agreement.max_relative_difference < limit
    assert found.agreement.top1_agreement >= 0.99
    accuracies = [
        measure_accuracy(files[name], splits.test, network.class_names).accuracy for name in ("fp32", precision)
    ]
    assert accuracies[0] - accuracies[1] <= 0.01


def test_agreement_counted_by_hand(digits, files):
    network, splits, _ = digits
    images = torch.cat([batch for batch, _ in splits.validation.batches(64)])
    with torch.no_grad():
        expected = network.logits(images).numpy()
    session = onnxruntime.InferenceSession(files["int8"], providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy()})[0]
    agreement = measure_agreement(network, files["int8"], splits.validation)
    assert agreement.top1_agreement == (found.argmax(1) == expected.argmax(1)).mean()
    assert agreement.max_relative_difference == pytest.approx(
        np.abs(found - expected).max() / np.abs(expected).max(), rel=0.2
    )


def test_weights_are_what_the_name_says(files):
    half = onnx.load(files["fp16"])
    large = [tensor for tensor in half.graph.initializer if np.prod(tensor.dims) > 16]
    assert large
    assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in large)
    quantised = onnx.load(files["int8"])
    weights = [
        onnx.numpy_helper.to_array(one) for one in quantised.graph.initializer if one.data_type == onnx.TensorProto.INT8
    ]
    kernels = [values for values in weights if values.ndim == 4]
    assert kernels
    assert max(np.abs(values.astype(int)).max() for values in kernels) <= 64, "7 bits"
    scales = {one.name: one.dims for one in quantised.graph.initializer if one.name.endswith("_scale")}
    assert any(list(dims) == [len(kernels[0])] for dims in scales.values()), "a scale for each kernel"
    assert files["int8"].stat().st_size < files["fp16"].stat().st_size < files["fp32"].stat().st_size


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_bytes_repeat_and_hold_no_path(digits, files, precision, tmp_path):
    _, splits, path = digits
    to_precision(path, tmp_path / "again.onnx", precision, splits.train.sample(128, 0))
    assert sha256_file(tmp_path / "again.onnx") == sha256_file(files[precision])
    model = onnx.load(files[precision])
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    text = model.SerializeToString()
    for trace in (str(Path(onnx.__file__).parent), str(path.parent), ".py", "/tmp"):
        assert trace.encode() not in text
    about = read_metadata(files[precision])
    assert (about["precision"], about["what"]) == (precision, "baseline")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_batch_size_stays_free(files, precision):
    session = onnxruntime.InferenceSession(files[precision], providers=["CPUExecutionProvider"])
    for size in (1, 5):
        assert session.run(None, {"images": np.zeros((size, 1, 8, 8), np.float32)})[0].shape == (size, 10)


def test_for_a_gpu_activations_are_symmetric_int8(digits, tmp_path):
    _, splits, path = digits
    to_precision(path, tmp_path / "gpu.onnx", "int8", splits.train.sample(64, 0), "tensorrt")
    model = onnx.load(tmp_path / "gpu.onnx")
    values = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    points = [values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_what_float16_cannot_hold_is_refused(digits, tmp_path):
    network, splits, _ = digits
    wild = network.copy()
    with torch.no_grad():
        wild.module.head.weight[0, 0] = 1e6
    export_onnx(wild, tmp_path / "wild.onnx")
    with pytest.raises(InputError, match=r"beyond float16's 65504.*--precision"):
        to_precision(tmp_path / "wild.onnx", tmp_path / "half.onnx", "fp16", splits.train)
    assert not (tmp_path / "half.onnx").exists()


class Folded(torch.nn.Module):
    """Several nodes that float16's converter leaves in float32 read the same values."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(24, 4)

    def forward(self, x):
        x = self.conv(x)
        folded = torch.cat([torch.maximum(x, -x), torch.minimum(x, 0.5 * x), x.cumsum(2)], 1)
        return self.head(folded.mean((2, 3)))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_values_read_by_several_nodes_in_float32(network_of, noise_images, shake, tmp_path, precision):
    network, images = network_of(shake(Folded(), 0)), noise_images(32)
    export_onnx(network, tmp_path / "model.onnx")
    to_precision(tmp_path / "model.onnx", tmp_path / "small.onnx", precision, images)
    names = [name for node in onnx.load(tmp_path / "small.onnx").graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert measure_agreement(network, tmp_path / "small.onnx", images).max_relative_difference < 0.05


def test_what_a_converter_spoils_is_told(digits, tmp_path, monkeypatch):
    from onnxruntime.transformers import float16

    convert = float16.convert_float_to_float16

    def spoiled(model, **options):
        model = convert(model, **options)
        model.graph.node[-1].input[0] = "nowhere"
        return model

    _, splits, path = digits
    monkeypatch.setattr(float16, "convert_float_to_float16", spoiled)
    with pytest.raises(InputError, match=r"cannot write model.onnx as fp16.*Leave fp16 out of --precision"):
        to_precision(path, tmp_path / "half.onnx", "fp16", splits.train)
    assert not (tmp_path / "half.onnx").exists()
