"""What labels belong to: the sides of layers, and parameters."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .moves import compressed

HEAD_LOCK = "its units are the classes of the head."


@dataclass(frozen=True)
class Part:
    """One side of a layer, or a parameter: a label for every channel along ``dim``, 0 where it has none."""

    layer: str
    side: Literal["out", "in"]
    labels: Tensor
    dim: int = 0


def no_labels(value: Tensor) -> Tensor:
    """Labels of a value without any."""
    return torch.zeros([1] * value.dim(), dtype=torch.long)


def placed(vector: Tensor, value: Tensor, dim: int) -> Tensor:
    """A vector of labels along one dimension of a value."""
    labels: Tensor = compressed(vector.reshape([-1 if other == dim else 1 for other in range(value.dim())]))
    return labels
