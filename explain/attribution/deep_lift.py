"""DeepLIFT (Shrikumar et al., ICML 2017) by captum, with multipliers that obey summation-to-delta for every network.

The modules here replace operations that captum's DeepLIFT does not support or handles incorrectly. Each runs on images and
references as one batch, the images first, as captum's DeepLIFT runs networks. Its output equals that of the module that it
replaces; its gradients are DeepLIFT's multipliers, which attribute the change of its output to its inputs.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .graph_views import Attribute, CaptumView, GatheredPoints, own_inputs, settle, swap
from .node_kinds import node_kinds

SMALL = 1e-6
"""For smaller changes of an activation, its gradient is used instead of the slope."""


def prepare_deep_lift(view: CaptumView, rows: int) -> Attribute:
    """Multiplier times difference from a zero image at all points."""
    from captum.attr import LayerDeepLift

    prepare_for_deep_lift(view)
    module = GatheredPoints(view.traced, view.names)

    def run(images: Tensor, labels: Tensor) -> list[Tensor]:
        peer = LayerDeepLift(module, module.gather)  # a new instance, since it keeps the handles of its hooks
        peer.eps = SMALL
        return list(peer.attribute(images, target=labels, attribute_to_layer_input=True)[1:])

    return run


def prepare_for_deep_lift(view: CaptumView) -> None:
    """Rewrite the view in place so that captum's DeepLIFT obeys summation-to-delta.

    Nonlinearities that captum does not support get the rescale rule (Shrikumar et al., ICML 2017, section 3.5.1), maxima get
    captum's rule extended to overlapping windows, products the mean over both orders of change (the Shapley value of two
    factors).

    Raises:
        InputError: there is no rule for an operation of the network.
    """
    known = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
    traced = view.traced
    modules = dict(traced.named_modules())
    for node, kind in node_kinds(traced, "deep-lift", "integrated-gradients or gap", products=True):
        if kind == "activation" and type(modules[str(node.target)]) in known:
            own_inputs(traced, node, node.args)
        elif kind == "activation":
            swap(traced, node, Rescaled(modules[str(node.target)]))
        elif kind == "maximum":
            swap(traced, node, RoutedMaximum(modules[str(node.target)]))
        elif kind == "product":
            swap(traced, node, SharedProduct())
    settle(traced)


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
    """A product; the multiplier of one factor is the mean of the other over both halves of the batch."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return _with_slope(first * second, (first, _halves_mean(second)), (second, _halves_mean(first)))


class RoutedMaximum(nn.Module):
    """Max-pooling; the change of a window's maximum is attributed to the largest positions of each half of the batch.

    The change from the reference's maximum up to the larger of both counts for the image's position, the change from there down
    for the reference's position. This is captum's rule, but contributions of overlapping windows to one position are summed.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        indexed: Any = copy.copy(pool)
        indexed.return_indices = True
        self.pool: nn.Module = indexed

    def forward(self, x: Tensor) -> Tensor:
        y, own = self.pool.forward(x)  # not as a module call, since captum hooks all pools that it finds
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
    """The first half of a batch minus the second, repeated for both halves."""
    image, reference = value.detach().chunk(2)
    return torch.cat([image - reference] * 2)


def _halves_mean(value: Tensor) -> Tensor:
    image, reference = value.detach().chunk(2)
    return torch.cat([(image + reference) / 2] * 2)


def _with_slope(value: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """Return ``value`` with a custom gradient: for each pair, the second is the gradient with respect to the first."""
    result = value.detach()
    for source, slope in terms:
        result = result + slope * (source - source.detach())
    return result
