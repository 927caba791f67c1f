"""Networks with operations that ONNX Runtime's converters get wrong, in float16 and int8: each file is run."""

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.export.onnx import precision
from secateur.export.onnx.model import export_onnx
from secateur.export.onnx.precision import measure_agreement, to_precision


class Between(nn.Module):
    """An operation between two convolutions."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.operation(self.first(x).relu())
        return self.head(self.second(x).relu().mean((2, 3)))


class Pyramid(nn.Module):
    """Maps of three sizes brought to one, as heads of feature pyramids do."""

    def forward(self, x):
        half, third = F.max_pool2d(x, 2), F.avg_pool2d(x, 3)
        half = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
        return x + half + F.interpolate(third, size=x.shape[2:], mode="bicubic")


RESIZED = {
    "bilinear, scale": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "bilinear, size": lambda x: F.interpolate(x, size=(20, 18), mode="bilinear"),
    "bilinear, half": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
    "nearest, scale": lambda x: F.interpolate(x, scale_factor=2),
    "nearest, size": lambda x: F.interpolate(x, size=(7, 9)),
    "bicubic, scale": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "bicubic, size": lambda x: F.interpolate(x, size=(24, 24), mode="bicubic"),
    "upsample": nn.Upsample(scale_factor=(2, 3)),
    "upsample twice": nn.Sequential(nn.UpsamplingBilinear2d(scale_factor=2), nn.UpsamplingNearest2d(scale_factor=2)),
    "pyramid": Pyramid(),
    "adaptive average": nn.AdaptiveAvgPool2d((5, 3)),
    "adaptive maximum": nn.AdaptiveMaxPool2d(4),
}
OTHER = {
    "celu": nn.CELU(),  # has no float16 form
    "layer norm": nn.LayerNorm([8, 12, 12]),  # the quantiser fails on weights of several dimensions
    "top": lambda x: x.flatten(2).topk(9, 2)[0].unflatten(2, (3, 3)),
    "maximum with numbers": lambda x: torch.maximum(x, torch.linspace(0, 1, 12)),
    "running sum": lambda x: x.cumsum(2) / 12 + torch.arange(12.0) / 12,
    "padding": lambda x: F.pad(x, (1, 1, 1, 1), value=0.5),
}


@pytest.fixture
def converted(network_of, noise_images, shake, tmp_path):
    def build(operation, kind):
        network, images = network_of(shake(Between(operation), 0)), noise_images(32)
        export_onnx(network, tmp_path / "model.onnx")
        to_precision(tmp_path / "model.onnx", tmp_path / "small.onnx", kind, images)
        return onnx.load(tmp_path / "small.onnx"), measure_agreement(network, tmp_path / "small.onnx", images)

    return build


@pytest.mark.parametrize("name", [*RESIZED, *OTHER])
def test_float16(converted, name):
    model, agreement = converted({**RESIZED, **OTHER}[name], "fp16")
    assert agreement.max_relative_difference < 5e-3
    assert agreement.top1_agreement == 1
    weights = [tensor for tensor in model.graph.initializer if tensor.name.endswith(("first.weight", "second.weight"))]
    assert len(weights) == 2
    assert all(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights)


@pytest.mark.parametrize("name", ["bilinear, scale", "pyramid", "celu", "layer norm"])
def test_int8(converted, name):
    model, agreement = converted({**RESIZED, **OTHER}[name], "int8")
    assert agreement.max_relative_difference < 0.1
    assert any(
        tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4 for tensor in model.graph.initializer
    )


def test_where_a_converter_fails_the_convolutions_are_still_converted(converted, monkeypatch):
    """The first try is spoiled, as by a fault that is not known yet."""
    from onnxruntime.transformers import float16

    convert, blocked = float16.convert_float_to_float16, []

    def spoiled(model, **options):
        blocked.append(options["op_block_list"])
        model = convert(model, **options)
        if len(blocked) == 1:
            model.graph.node[-1].input[0] = "nowhere"
        return model

    monkeypatch.setattr(float16, "convert_float_to_float16", spoiled)
    model, agreement = converted(nn.Softplus(), "fp16")
    assert "Softplus" in blocked[1]
    assert "Conv" not in blocked[1]
    assert agreement.max_relative_difference < 5e-3
    assert {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4} == {
        onnx.TensorProto.FLOAT16
    }


def test_a_file_that_does_not_run_is_not_written(converted, monkeypatch, tmp_path):
    def broken(path, calibration):
        raise ValueError("no kernel for this operation")

    monkeypatch.setattr(precision, "_try_out", broken)
    with pytest.raises(InputError, match=r"as fp16: no kernel for this operation\. Leave fp16 out"):
        converted(nn.ReLU(), "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
