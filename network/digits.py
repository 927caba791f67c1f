"""The default network: a small residual network trained on scikit-learn's handwritten digits.

``scripts/train_digits.py`` trained the weights beside this file on the split of ``images/digits_images.py``.
"""

from pathlib import Path

from torch import Tensor, nn

from .checkpoints import read_checkpoint
from .images.digits_images import CLASS_NAMES

INPUT_SHAPE = (1, 8, 8)
MEAN, STD = (0.3061,), (0.3760,)

WEIGHTS = Path(__file__).with_name("digits.safetensors")


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the stage halves the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return result


class DigitsNetwork(nn.Module):
    """Eight convolutions: a stem, three residual blocks of which the second halves the resolution, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block1 = Block(32, 32, 1)
        self.block2 = Block(32, 64, 2)
        self.block3 = Block(64, 64, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, len(CLASS_NAMES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(x))))
        scores: Tensor = self.head(self.pool(x).flatten(1))
        return scores


def build_digits_network(
    *, with_weights: bool = True
) -> tuple[nn.Module, tuple[int, int, int], tuple[float, ...], tuple[float, ...], None, tuple[str, ...]]:
    """The digits network with its input shape, mean, standard deviation, resize (None) and class names."""
    module = DigitsNetwork()
    if with_weights:
        module.load_state_dict(read_checkpoint(WEIGHTS))
    return module, INPUT_SHAPE, MEAN, STD, None, CLASS_NAMES
