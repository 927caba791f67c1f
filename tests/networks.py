"""Tiny networks in the form in which a user brings them: a file with factories and two declarations."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_SHAPE = (3, 12, 12)
NORMALISATION = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


class Shortcut(nn.Module):
    def __init__(self, extra: int) -> None:
        super().__init__()
        self.pad = extra // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Padded(nn.Module):
    """A CIFAR ResNet with zero-padding shortcuts: stages of 8, 16 and 32 channels, one block each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2))
        self.layer3 = nn.Sequential(Block(16, 32, 2))
        self.linear = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class InvertedBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Inverted(nn.Module):
    """MobileNetV2 in small: a stem, two inverted residuals, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(InvertedBlock(8, 24), InvertedBlock(8, 32))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two plain ones, inside a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.reduce = nn.Conv2d(16, 16, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.expand = nn.Conv2d(16, 16, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.relu(self.bn1(self.reduce(x)))
        y = self.expand(self.relu(self.bn2(self.grouped(y))))
        y += x
        return self.head(F.adaptive_avg_pool2d(self.relu(y), 1).flatten(1))


class Dense(nn.Module):
    """Concatenation, then a flattened map read by two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.mix = nn.Conv2d(16, 8, 1)
        self.hidden = nn.Linear(8 * 9, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        both = torch.cat([first, torch.tanh(self.second(first))], 1)
        x = F.max_pool2d(F.relu(self.mix(both)), 2)
        return self.head(F.relu(self.hidden(torch.flatten(x, 1))))


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 2, 1)
        self.squeeze = nn.Conv2d(16, 8, 1)
        self.excite = nn.Conv2d(8, 16, 1)
        self.last = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.relu(self.last(x * gate)).mean((2, 3)))


class Chain(nn.Module):
    """Convolution, BatchNorm, one shared ReLU, twice; then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.head(self.pool(x).flatten(1))


class Plain(nn.Module):
    """Linear in its input: two convolutions without padding, the mean over places, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.conv2 = nn.Conv2d(8, 6, 3, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.conv1(x)).mean((2, 3)))


class Wrapped(nn.Module):
    """A network that returns its class scores inside something."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = Chain()
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        scores = self.inner(x)
        return {"tuple": (scores, x), "dict": {"features": x, "logits": scores}}[self.kind]


def padded() -> nn.Module:
    return Padded()


def inverted() -> nn.Module:
    return Inverted()


def grouped() -> nn.Module:
    return Grouped()


def dense() -> nn.Module:
    return Dense()


def gated() -> nn.Module:
    return Gated()


def chain() -> nn.Module:
    return Chain()


def plain() -> nn.Module:
    return Plain()
