"""Layers that pad by themselves, and weights that are computed or that no layer holds."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from kinds_frame import WIDTH, Framed, conv


def _same(size: int, kernel: int, stride: int, dilation: int) -> int:
    return max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)


class StaticSame(nn.Conv2d):
    """As EfficientNet-Lite's package builds it: the padding is a layer, chosen for one image size."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, size: int = 16
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        pad = _same(size, kernel, stride, 1)
        self.static_padding = nn.ZeroPad2d((pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class DynamicSame(nn.Conv2d):
    """As timm's ``Conv2dSame``: the padding follows the input's size."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height = _same(x.shape[-2], self.kernel_size[0], self.stride[0], self.dilation[0])
        width = _same(x.shape[-1], self.kernel_size[1], self.stride[1], self.dilation[1])
        if height > 0 or width > 0:
            x = F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SameMaxPool(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (_same(size, self.kernel_size, self.stride, 1) for size in x.shape[-2:])
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2], value=float("-inf"))
        return F.max_pool2d(x, self.kernel_size, self.stride)


class ReflectPadded(nn.Conv2d):
    """Says padding 0 and pads by reflection."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))


class Standardised(nn.Conv2d):
    """BiT's ``StdConv2d``."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardisedByBatchNorm(nn.Conv2d):
    """timm's way: the kernels as the channels of one batch norm in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledStandardised(nn.Conv2d):
    """NFNet's ``ScaledStdConv2d``: standardised, with a gain for each kernel."""

    def __init__(self, *arguments: int, **options: int) -> None:
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)
        self.scale = 1.7 * self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * self.scale).view(-1),
            training=True,
            momentum=0.0,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class MaskedWeights(nn.Conv2d):
    """A pruned network as some packages save it: a mask on the weights."""

    def __init__(self, *arguments: int, **options: int) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.3).float())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class EqualisedLinear(nn.Linear):
    """A linear layer that scales its weights as it runs, on features in the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), self.weight * 0.8, self.bias).permute(0, 3, 1, 2)


class OwnWeights(nn.Module):
    """Channels mixed by a Parameter that no layer holds."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        shape = (24, WIDTH, 3, 3) if way == "convolution" else (24, WIDTH)
        self.kernels = nn.Parameter(torch.randn(shape) * 0.2)
        self.shift = nn.Parameter(torch.randn(24) * 0.2)
        self.norm = nn.BatchNorm2d(24)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "convolution":
            y = F.conv2d(x, self.kernels, self.shift, padding=1)
        elif self.way == "einsum":
            y = torch.einsum("oc,nchw->nohw", self.kernels, x) + self.shift[:, None, None]
        elif self.way == "matmul":
            n, _, height, width = x.shape
            y = torch.matmul(self.kernels, x.flatten(2)).view(n, 24, height, width) + self.shift.view(1, -1, 1, 1)
        else:  # features in the last dimension
            y = (x.permute(0, 2, 3, 1) @ self.kernels.t() + self.shift).permute(0, 3, 1, 2)
        return F.relu(self.norm(y))


class FunctionalNorm(nn.Module):
    """``F.batch_norm`` with the module's own tensors, after a plain convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, 24, 3, padding=1, bias=False)
        self.weight = nn.Parameter(torch.rand(24) + 0.5)
        self.bias = nn.Parameter(torch.randn(24) * 0.2)
        self.register_buffer("mean", torch.randn(24) * 0.2)
        self.register_buffer("variance", torch.rand(24) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(self.conv(x), self.mean, self.variance, self.weight, self.bias, False, 0.1, 1e-5))


class NormAndAct(nn.BatchNorm2d):
    """timm's ``BatchNormAct2d``: a norm with a ``forward`` of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        )


class GroupNormAndAct(nn.GroupNorm):
    """timm's ``GroupNormAct``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


def _framed(*layers: nn.Module, width: int = 24) -> nn.Module:
    return Framed(nn.Sequential(*layers), width)


def _static_same() -> nn.Module:
    return _framed(
        StaticSame(WIDTH, 32, 3, stride=2), nn.ReLU(), StaticSame(32, 32, 5, groups=32, size=8), conv(32, 24, 1)
    )


def _dynamic_same() -> nn.Module:
    return _framed(DynamicSame(WIDTH, 32, 3, stride=2), nn.ReLU(), DynamicSame(32, 32, 5, groups=32), conv(32, 24, 1))


def _same_pool() -> nn.Module:
    return _framed(conv(WIDTH, 24), SameMaxPool(3, 2))


def _by(kind: type[nn.Conv2d], padding: int = 1) -> nn.Module:
    return _framed(kind(WIDTH, 32, 3, padding=padding), nn.ReLU(), kind(32, 24, 3, padding=padding), nn.ReLU())


def _normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    layers = (nn.Conv2d(WIDTH, 32, 3, padding=1), nn.Conv2d(32, 24, 3, padding=1))
    return _framed(norm(layers[0]), nn.ReLU(), norm(layers[1]), nn.ReLU())


KINDS = {
    "same_padding_static": _static_same,
    "same_padding_dynamic": _dynamic_same,
    "same_padding_pool": _same_pool,
    "padding_by_reflection": lambda: _by(ReflectPadded, 0),
    "standardised_weights": lambda: _by(Standardised),
    "standardised_by_batch_norm": lambda: _by(StandardisedByBatchNorm),
    "standardised_with_gain": lambda: _by(ScaledStandardised),
    "masked_weights": lambda: _by(MaskedWeights),
    "scaled_linear": lambda: _framed(EqualisedLinear(WIDTH, 32), nn.ReLU(), conv(32, 24)),
    "functional_convolution": lambda: Framed(OwnWeights("convolution"), 24),
    "einsum_over_channels": lambda: Framed(OwnWeights("einsum"), 24),
    "matmul_over_channels": lambda: Framed(OwnWeights("matmul"), 24),
    "matmul_over_last_dimension": lambda: Framed(OwnWeights("last"), 24),
    "same_padding_and_own_norm": lambda: _framed(
        StaticSame(WIDTH, 32, 3, stride=2), NormAndAct(32), StaticSame(32, 24, 5, size=8), NormAndAct(24)
    ),
    "standardised_and_own_norm": lambda: _framed(
        Standardised(WIDTH, 32, 3), GroupNormAndAct(4, 32), Standardised(32, 24, 3), GroupNormAndAct(4, 24)
    ),
    "functional_batch_norm": lambda: Framed(FunctionalNorm(), 24),
    "weight_norm": lambda: _normed(parametrizations.weight_norm),
    "spectral_norm": lambda: _normed(parametrizations.spectral_norm),
    "old_weight_norm": lambda: _normed(nn.utils.weight_norm),
    "old_spectral_norm": lambda: _normed(nn.utils.spectral_norm),
}
