"""Files that take pixels: equal to the file of normalised images, in every precision, and fed the exact bytes."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from secateur.common.errors import InputError, UsageError
from secateur.export.measure.accuracy import measure_accuracy
from secateur.export.measure.latency import compare_latency
from secateur.export.measure.telemetry import peak_memory
from secateur.export.onnx.model import export_onnx, measure_parity, read_metadata
from secateur.export.onnx.precision import describe, file_name, to_precision
from secateur.export.runtime.bound_runs import bind
from secateur.export.runtime.classifier import read_classifier
from secateur.export.runtime.session import SessionSettings, open_session
from secateur.network.images.images import images_from_tensor
from secateur.network.images.load import load_images
from secateur.network.images.pictures import Preprocessing, eight_bits
from secateur.network.load import load_model
from secateur.network.network import Network, Source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    network = load_model("digits")
    splits = load_images("digits", network.preprocessing)
    folder, calibration = tmp_path_factory.mktemp("pixels"), splits.train.sample(128, 0)
    files = {}
    for taken in ("float32", "uint8"):
        for precision in ("fp32", "fp16", "int8"):
            path = folder / file_name(f"{taken}.onnx", precision)
            if precision == "fp32":
                export_onnx(network, path, input_type=taken)
            else:
                to_precision(folder / f"{taken}.onnx", path, precision, calibration)
            files[taken, precision] = path
    return network, splits, files


def colourful():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    return Network(module.eval(), Preprocessing((3, 6, 6), MEAN, STD), tuple("abcd"), Source("colourful"))


def test_channels_have_their_own_scale_and_zeros_are_padded_after_it(tmp_path):
    network = colourful()
    model = export_onnx(network, tmp_path / "model.onnx", input_type="uint8")
    assert model.parity.max_relative_difference < 1e-5
    pixels = torch.randint(256, (5, 3, 6, 6), generator=torch.Generator().manual_seed(9)).to(torch.uint8)
    values = (pixels.double() / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    expected = network.copy().module.double()(values).detach().numpy()
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": pixels.numpy()})
    assert np.allclose(found, expected, atol=1e-5)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert read_metadata(model.path)["input_type"] == "uint8"


def test_pixels_without_a_mean_need_no_shift(tmp_path):
    network = replace(colourful(), preprocessing=Preprocessing((3, 6, 6), (0.0,) * 3, (1.0,) * 3))
    path = export_onnx(network, tmp_path / "model.onnx", input_type="uint8").path
    assert [node.op_type for node in onnx.load(path).graph.node][:3] == ["Cast", "Mul", "Conv"]


def test_parity_sees_a_wrong_scale(tmp_path):
    network = colourful()
    path = export_onnx(network, tmp_path / "model.onnx", input_type="uint8").path
    wrong = replace(network, preprocessing=Preprocessing((3, 6, 6), MEAN, (0.25,) * 3))
    assert measure_parity(wrong, path, input_type="uint8").max_relative_difference > 1e-3


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.1)])
def test_every_precision_classifies_as_its_file_of_normalised_images(digits, precision, limit):
    network, splits, files = digits
    found = describe(files["uint8", precision], precision, network, splits.validation)
    assert found.agreement.max_relative_difference < limit
    with_floats, with_pixels = (
        measure_accuracy(files[taken, precision], splits.test, network.class_names) for taken in ("float32", "uint8")
    )
    assert (with_floats.predictions == with_pixels.predictions).mean() >= 0.995
    assert read_classifier(files["uint8", precision]).takes_pixels
    for size in (1, 5):
        pixels = np.zeros((size, 1, 8, 8), np.uint8)
        assert open_session(files["uint8", precision]).session.run(None, {"images": pixels})[0].shape == (size, 10)


def test_the_normalisation_is_not_quantised(digits):
    _, _, files = digits
    graph = onnx.load(files["uint8", "int8"]).graph
    constants = {one.name: one.data_type for one in graph.initializer}
    read = "images"
    for name in ("pixels_cast", "pixels_scale", "pixels_shift"):
        (node,) = [node for node in graph.node if node.name == name]
        assert node.input[0] == read, "nothing in between"
        assert all(constants[one] == onnx.TensorProto.FLOAT for one in node.input[1:])
        (read,) = node.output


def test_files_are_fed_the_bytes_that_the_pictures_hold(digits):
    network, splits, files = digits
    classifier = read_classifier(files["uint8", "fp32"])
    fed = np.concatenate(list(classifier.batches(splits.test, 100)))
    assert fed.dtype == np.uint8
    assert np.array_equal(fed, splits.test.pixels().numpy())
    as_floats = images_from_tensor(splits.test.pixels().float() / 255, splits.test.labels, network.preprocessing)
    assert np.array_equal(np.concatenate(list(classifier.batches(as_floats, 100))), fed)
    with pytest.raises(ValueError, match="takes pixels"):
        classifier.feed(np.zeros((1, 1, 8, 8), np.float32))


def test_every_byte_is_recovered_from_its_share_of_255():
    levels = torch.arange(256)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(eight_bits((levels / 255).to(dtype)), levels.to(torch.uint8))
    for wrong in (torch.rand(1000), levels / 254, levels / 255 * 2 - 1):
        with pytest.raises(InputError, match="not pictures of eight bits"):
            eight_bits(wrong)


def test_latency_and_memory_are_measured_with_pixels(digits):
    _, _, files = digits
    found = compare_latency(files["float32", "fp32"], files["uint8", "fp32"], (1, 8, 8), 2)
    assert found.pruned.median_ms > 0
    memory = peak_memory(files["uint8", "fp32"], 2, (1, 8, 8), "cpu", 1)
    assert memory is None or memory > 0


def test_another_type_is_refused(digits, tmp_path):
    with pytest.raises(UsageError, match="input_type must be one of float32, uint8"):
        export_onnx(digits[0], tmp_path / "model.onnx", input_type="int8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_card_pixels_give_the_scores_of_the_cpu(digits, precision, graphs):
    classifier = read_classifier(digits[2]["uint8", precision])
    pixels = classifier.noise(5, (1, 8, 8))
    expected = classifier.run(open_session(classifier.path).session, pixels)
    runs = bind(classifier, pixels, 10, "cuda", SessionSettings(cuda_graphs=graphs))
    for _ in range(3):
        assert np.allclose(runs.end_to_end(), expected, atol=2e-2 * np.abs(expected).max())
