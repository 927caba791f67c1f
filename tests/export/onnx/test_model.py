from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError, MachineError, SecateurError
from secateur.export.onnx import model as onnx_model
from secateur.export.onnx.model import export_onnx, measure_parity, read_metadata
from secateur.export.runtime import provider_choice, providers
from secateur.export.runtime.provider_choice import choose_provider
from secateur.export.runtime.session import open_session
from secateur.network.images.pictures import Preprocessing
from secateur.network.load import load_model
from secateur.network.network import Network, Source


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    network = load_model("digits")
    return network, export_onnx(network, tmp_path_factory.mktemp("onnx") / "digits.onnx", {"what": "baseline"})


def tiny(module):
    return Network(module.eval(), Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3), ("a", "b"), Source("tiny"))


def test_file_runs_at_any_batch_size_and_agrees_with_torch(exported):
    network, model = exported
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    for size in (1, 2, 5, 64):
        images = torch.randn(size, 1, 8, 8)
        with torch.no_grad():
            expected = network.module(images).numpy()
        (found,) = session.run(None, {"images": images.numpy()})
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert model.parity.max_relative_difference < 1e-5
    assert len(model.parity.batch_sizes) == 3
    assert model.parity.rounding == 0
    assert model.parity.note() == ""


def test_one_file_without_paths_of_this_machine(exported):
    _, model = exported
    assert [path.name for path in model.path.parent.iterdir()] == [model.path.name]
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")  # random bytes may spell anything
    text = proto.SerializeToString()
    for trace in (str(Path(onnx_model.__file__).parent), str(Path(torch.__file__).parent), ".py", str(Path.home())):
        assert trace.encode() not in text, trace
    assert not any(node.metadata_props for node in proto.graph.node)
    assert next(entry.version for entry in proto.opset_import if entry.domain == "") == model.opset


def test_metadata_say_how_to_use_it(exported):
    network, model = exported
    about = read_metadata(model.path)
    assert about["what"] == "baseline"
    assert about["class_names"] == list("0123456789")
    assert about["mean"] == list(network.preprocessing.mean)
    assert about["input_shape"] == [1, 8, 8]
    assert about["resize"] == network.preprocessing.resize


def test_equal_networks_give_equal_bytes(exported, tmp_path):
    network, model = exported
    again = export_onnx(load_model("digits"), tmp_path / "again.onnx", {"what": "baseline"})
    assert again.sha256 == model.sha256
    assert network.module.training is False


def test_parity_sees_a_difference(exported):
    network, model = exported
    other = network.copy()
    with torch.no_grad():
        other.module.head.bias += 0.1
    assert measure_parity(other, model.path).max_relative_difference > 1e-3


def test_wrong_file_is_not_called_a_success(exported, tmp_path, monkeypatch):
    network, _ = exported
    other = network.copy()
    with torch.no_grad():
        other.module.head.bias += 1
    proto = onnx_model._to_proto(other)
    monkeypatch.setattr(onnx_model, "_to_proto", lambda network: proto)
    with pytest.raises(SecateurError, match="differs from torch"):
        export_onnx(network, tmp_path / "wrong.onnx")


class Padded(nn.Module):
    """Pads maps that may be negative, then pools or convolves them."""

    def __init__(self, value, reader):
        super().__init__()
        torch.manual_seed(0)
        self.value, self.reader = value, reader
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        nn.init.constant_(self.conv.bias, -2)

    def forward(self, x):
        return self.head(self.reader(F.pad(self.conv(x), (1, 1, 1, 1), value=self.value)).mean((2, 3)))


@pytest.mark.parametrize(
    ("value", "reader"),
    [
        *((value, nn.MaxPool2d(3, 2)) for value in (0.0, 1.5, float("-inf"))),
        *((value, reader) for value in (0.0, 1.5) for reader in (nn.AvgPool2d(3, 2), nn.Conv2d(6, 6, 3))),
    ],
)
def test_runtimes_do_not_take_a_padding_for_the_readers_own(tmp_path, value, reader):
    network = tiny(Padded(value, reader))
    path = export_onnx(network, tmp_path / "padded.onnx").path
    images = network.example(2, seed=3)
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"images": images.numpy()}
    )
    np.testing.assert_allclose(found, network.logits(images).detach().numpy(), rtol=1e-4, atol=1e-5)


class Cancelling(nn.Module):
    """Class scores of which float32 keeps few digits."""

    def __init__(self, shift: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.shift = nn.Conv2d(3, 2, 8), shift

    def forward(self, x):
        scores = self.conv(x).flatten(1)
        return (scores * 1e7 + scores) - scores * 1e7 + self.shift * scores


@pytest.mark.parametrize(("shift", "refused"), [(0.1, False), (100.0, True)])
def test_rounding_of_an_unstable_network_is_not_called_a_defect(tmp_path, monkeypatch, shift, refused):
    proto = onnx_model._to_proto(tiny(Cancelling(shift)))
    monkeypatch.setattr(onnx_model, "_to_proto", lambda network: proto)
    if refused:
        with pytest.raises(SecateurError, match="differs from torch"):
            export_onnx(tiny(Cancelling()), tmp_path / "wrong.onnx")
    else:
        parity = export_onnx(tiny(Cancelling()), tmp_path / "rounded.onnx").parity
        assert parity.max_relative_difference > onnx_model.PARITY_LIMIT
        assert "depend on rounding" in parity.note()


def test_dict_output_is_exported(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))

        def forward(self, x):
            return {"features": self.layer[0](x), "logits": self.layer(x)}

    assert export_onnx(tiny(Named()), tmp_path / "named.onnx").parity.max_relative_difference < 1e-5


def test_nan_weights_are_not_exported(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    with torch.no_grad():
        module[2].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        export_onnx(tiny(module), tmp_path / "nan.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_export_is_bad_input(tmp_path):
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))

        def forward(self, x):
            y = self.layer(x)
            return y if float(y.sum()) > 0 else -y

    with pytest.raises(InputError, match="cannot export"):
        export_onnx(tiny(Moody()), tmp_path / "moody.onnx")


def test_required_provider_that_is_not_there_is_exit_code_4(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    provider_choice.why_not.cache_clear()
    try:
        with pytest.raises(MachineError, match="cuda"):
            choose_provider("cuda")
        assert choose_provider("auto").provider == "cpu"
    finally:
        provider_choice.why_not.cache_clear()


def test_silent_fallback_is_caught(exported, monkeypatch):
    """onnxruntime-gpu lists CUDA on a machine without a GPU, and a session asked for it runs on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises((MachineError, InputError)):
        open_session(exported[1].path, "cuda")


def test_fallback_with_a_gpu_is_said_aloud(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(provider_choice, "why_not", lambda provider: "its library is missing.")
    choice = choose_provider("auto")
    assert choice.provider == "cpu"
    assert "its library is missing" in choice.note


def test_both_onnxruntime_packages_are_refused(monkeypatch):
    monkeypatch.setattr(providers.metadata, "version", lambda name: "1.0")
    with pytest.raises(MachineError, match="pip uninstall"):
        choose_provider("cpu")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"broken\.onnx"):
        open_session(path)
    with pytest.raises(InputError, match="does not exist"):
        open_session(tmp_path / "absent.onnx")
