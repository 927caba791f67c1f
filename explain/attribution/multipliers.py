"""Modules with DeepLIFT's multipliers as gradients, for what captum's DeepLIFT does not know or gets wrong.

Each runs on images and references as one batch, the images first, as captum's DeepLIFT runs networks; it gives what the module
it stands for gives, and its gradients carry the change of its output over to its inputs: summation-to-delta.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

SMALL = 1e-6  # changes of an activation below it have no slope of their own: the gradient counts there


class Rescaled(nn.Module):
    """An activation whose gradient is the slope between the first half of the batch and the second."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(x)
        delta, change = _halves_apart(x), _halves_apart(y.detach())
        slope = torch.where(delta.abs() < SMALL, torch.zeros_like(delta), change / delta)
        return torch.where(delta.abs() < SMALL, y, _with_slope(y, (x, slope)))


class SharedProduct(nn.Module):
    """A product; to the change of one factor counts the mean of the other over both halves of the batch."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return _with_slope(first * second, (first, _halves_mean(second)), (second, _halves_mean(first)))


class RoutedMaximum(nn.Module):
    """Max-pooling; what a window's maximum changed by goes to the places that were the largest in each half of the batch.

    From the reference's maximum up to the larger of both it counts to the image's place, and from there down to the
    reference's place: captum's rule, but contributions of overlapping windows to one place are summed.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        indexed: Any = copy.copy(pool)
        indexed.return_indices = True
        self.pool: nn.Module = indexed

    def forward(self, x: Tensor) -> Tensor:
        y, own = self.pool.forward(x)  # not by a call: captum hooks the pools it finds
        dims = x.dim() - 2
        places, indices = x.flatten(2), own.flatten(2)
        at_image, at_reference = (half.repeat(2, 1, 1) for half in indices.chunk(2))
        maximum, reference = (half.repeat(2, *[1] * (dims + 1)) for half in y.detach().chunk(2))
        larger = torch.maximum(maximum, reference)
        delta = _halves_apart(places)
        terms, still = [], torch.ones_like(y, dtype=torch.bool)
        for index, change in ((at_image, larger - reference), (at_reference, maximum - larger)):
            moved = delta.gather(2, index).view_as(y)
            small = moved.abs() < SMALL
            terms.append((places.gather(2, index).view_as(y), torch.where(small, torch.zeros_like(y), change / moved)))
            still &= small
        return torch.where(still, y, _with_slope(y, *terms))


def _halves_apart(value: Tensor) -> Tensor:
    """What the first half of a batch is above the second, for both halves."""
    image, reference = value.detach().chunk(2)
    return torch.cat([image - reference] * 2)


def _halves_mean(value: Tensor) -> Tensor:
    image, reference = value.detach().chunk(2)
    return torch.cat([(image + reference) / 2] * 2)


def _with_slope(value: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """``value``, with the second of each pair as its gradient with respect to the first."""
    result = value.detach()
    for source, slope in terms:
        result = result + slope * (source - source.detach())
    return result
