"""Blocks of well-known convolutional networks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinds_frame import CLASSES, WIDTH, Framed, conv


class DenseBlock(nn.Module):
    """DenseNet: every layer reads all the layers before it, through a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTH + 8 * index for index in range(3)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(nn.Conv2d(width, 8, 3, padding=1, bias=False) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return torch.cat(features, 1)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = conv(WIDTH, 8, 1)
        self.three = nn.Sequential(conv(WIDTH, 6, 1), conv(6, 12))
        self.five = nn.Sequential(conv(WIDTH, 4, 1), conv(4, 8, 5))
        self.pooled = conv(WIDTH, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(pooled)], 1)


class ConvNext(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class Residual(nn.Module):
    """A bottleneck with a projection, grouped in the middle (ResNeXt)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(WIDTH, 16, 1), conv(16, 16, groups=groups), nn.Conv2d(16, 32, 1))
        self.shortcut = nn.Conv2d(WIDTH, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """ResNet's option A: the shortcut gains channels of zeros, by padding or by joining."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.branch = nn.Sequential(conv(WIDTH, 16, stride=2), nn.Conv2d(16, 32, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        short = x[:, :, ::2, ::2]
        if self.way == "pad":
            short = F.pad(short, (0, 0, 0, 0, 8, 8))
        else:
            short = torch.cat([short, torch.zeros_like(short)], 1)
        return F.relu(self.branch(x) + short)


class RepVgg(nn.Module):
    """Three branches in a sum: 3 x 3, 1 x 1 and a norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))
        self.one = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.three(x) + self.one(x) + self.norm(x))


class PoolFormer(nn.Module):
    """Pooling as the mixer, with the input taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, WIDTH)
        self.mlp = nn.Sequential(nn.Conv2d(WIDTH, 48, 1), nn.GELU(), nn.Conv2d(48, WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y
        return x + self.mlp(x)


class Mixer(nn.Module):
    """An MLP-Mixer: a layer over places, a layer over channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.places = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.channels = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(1))


class TwoPools(nn.Module):
    """Mean and maximum side by side before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, WIDTH, stride=2), conv(WIDTH, 24))
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def _multiplier() -> nn.Module:
    """A depthwise convolution that makes two channels of each."""
    depthwise = nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, groups=WIDTH, bias=False)
    return Framed(nn.Sequential(depthwise, nn.BatchNorm2d(2 * WIDTH), nn.ReLU(), conv(2 * WIDTH, 24, 1)), 24)


def _upsampling() -> nn.Module:
    layers = (nn.ConvTranspose2d(WIDTH, 24, 2, 2), nn.ReLU(), conv(24, 24), nn.ConvTranspose2d(24, 24, 3, groups=24))
    return Framed(nn.Sequential(*layers), 24)


KINDS = {
    "dense_block": lambda: Framed(DenseBlock(), WIDTH + 24),
    "inception": lambda: Framed(Inception(), 32),
    "convnext": lambda: Framed(nn.Sequential(ConvNext(), ConvNext()), WIDTH),
    "bottleneck": lambda: Framed(Residual(1), 32),
    "grouped_bottleneck": lambda: Framed(Residual(4), 32),
    "shortcut_padded": lambda: Framed(PaddedShortcut("pad"), 32),
    "shortcut_joined_with_zeros": lambda: Framed(PaddedShortcut("joined"), 32),
    "repvgg": lambda: Framed(RepVgg(), WIDTH),
    "poolformer": lambda: Framed(PoolFormer(), WIDTH),
    "mlp_mixer": Mixer,
    "two_pools": TwoPools,
    "depthwise_multiplier": _multiplier,
    "transposed_convolution": _upsampling,
}
