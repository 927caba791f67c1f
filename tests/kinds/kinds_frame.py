"""The frame of the networks of one kind: a stem, what the kind is about, a convolution and a head."""

import torch
from torch import Tensor, nn

INPUT_SHAPE = (3, 32, 32)
CLASSES = 10
WIDTH = 16
"""Channels that the stem gives, on 16 x 16 places."""
LAST = 24


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without a bias, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Framed(nn.Module):
    """``middle`` takes ``[n, 16, 16, 16]`` and returns ``[n, width, h, w]``."""

    def __init__(self, middle: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = conv(3, WIDTH, stride=2)
        self.middle = middle
        self.tail = conv(width, LAST)
        self.head = nn.Linear(LAST, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.middle(self.stem(x))).mean((2, 3)))


def settle(module: nn.Module) -> nn.Module:
    """Give every norm statistics, scales and shifts as after a training, so that a lost constant is seen; layers keep the size
    of what passes, so that the scores differ from image to image."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            last = name.rpartition(".")[2]
            if last == "running_var":
                tensor.uniform_(0.5, 1.5)
            elif last == "running_mean" or (last == "bias" and tensor.ndim == 1):
                tensor.normal_(0, 0.2)
            elif last == "weight" and tensor.ndim == 1 and bool((tensor == 1).all()):
                tensor.uniform_(0.5, 1.5)
            elif last == "weight" and tensor.ndim > 1:
                nn.init.kaiming_normal_(tensor)
    return module
