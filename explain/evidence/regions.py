"""Regions of the input: boxes of pixels, what of the image a place in the network sees, where a map is strong."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ...common.errors import InputError
from ...network.graph.execution import is_image_map, run_graph
from .dependence import NoGradientError, PassingNetwork


@dataclass(frozen=True)
class Box:
    """A box of pixels of the network's input; ``right`` and ``bottom`` are the first column and row behind it."""

    left: int
    top: int
    right: int
    bottom: int

    def __str__(self) -> str:
        return f"({self.left}, {self.top}, {self.right}, {self.bottom})"


def receptive_fields(
    view: fx.GraphModule,
    node: fx.Node,
    places: Sequence[tuple[int, int]],
    example: Tensor,
    passing: PassingNetwork | None = None,
) -> list[Box]:
    """For each place the smallest box with all pixels on which it can depend, whatever the weights.

    That is the theoretical receptive field, cut at the image's edge: the support of the place's gradient in a copy of the
    network that passes every gradient (:class:`~.dependence.PassingNetwork`). Branches, pools, slices and gates are followed;
    what sees everything (squeeze and excitation, a normalisation over places) gives the whole image.

    Where no gradient tells on what a place depends, because there is an ``argmax`` or the like before it, or because it is
    constant (a place of the padding), the box is the whole image: it never leaves out a pixel that counts.

    Args:
        view: a traced network; it is left as it was.
        node: gives a feature map ``[n, C, h, w]``.
        places: (row, column) in it.
        example: of an image only the shape counts, ``[n, C, H, W]``.
        passing: that copy, where several nodes are asked for; made here if it is not given.

    Raises:
        InputError: the node gives no feature map, or has no such place.
    """
    height, width = _map_size(view, node, example)
    for row, column in places:
        if not (0 <= row < height and 0 <= column < width):
            raise InputError(
                f"{node.name} gives a map of {height} rows and {width} columns; ({row}, {column}) is not in it."
            )
    whole = Box(0, 0, example.shape[3], example.shape[2])
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *example.shape[1:], generator=generator, dtype=torch.float64) + 0.5
    image.requires_grad_()
    try:
        with torch.enable_grad():
            value = (passing or PassingNetwork(view)).run(node, image)
    except NoGradientError:
        return [whole] * len(places)
    if not value.requires_grad:
        return [whole] * len(places)
    # Channels count differently, so that the sum over them is not constant where the network itself normalises them.
    weights = torch.rand(value.shape[1], generator=generator, dtype=torch.float64) + 0.5
    boxes = []
    for row, column in places:
        (gradient,) = torch.autograd.grad(weights @ value[0, :, row, column], image, retain_graph=True)
        seen = gradient[0] != 0
        boxes.append(supporting_region(seen.double()) if bool(seen.any()) else whole)
    return boxes


def _map_size(view: fx.GraphModule, node: fx.Node, example: Tensor) -> tuple[int, int]:
    with torch.no_grad():
        value = run_graph(view, example[:1], [node])[node]
    if not is_image_map(value):
        raise InputError(
            f"{node.name} gives no feature map of channels x height x width. Name a convolution or a block."
        )
    return value.shape[2], value.shape[3]


def supporting_region(gradient: Tensor, share: float = 0.0) -> Box:
    """The smallest box with all pixels whose gradient ``[C, H, W]``, in absolute value in any channel, is above ``share``
    of the largest; with 0 all that is not zero.

    Raises:
        InputError: the gradient is zero everywhere.
    """
    size = gradient.detach().abs().amax(0)
    strong = (size > share * size.max()).cpu()
    if not bool(strong.any()):
        raise InputError("The gradient is zero at every pixel, so no region supports the decision.")
    rows, columns = strong.any(1).nonzero().flatten().tolist(), strong.any(0).nonzero().flatten().tolist()
    return Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def strong_pixels(activation: Tensor, height: int, width: int, share: float = 0.5) -> Tensor:
    """The pixels that an activation map ``[h, w]`` is strong at, bool ``[H, W]``: enlarged bilinearly, above ``share`` of
    its maximum. A map without positive values is strong nowhere."""
    enlarged = F.interpolate(activation.detach()[None, None].float(), (height, width), mode="bilinear")[0, 0]
    return enlarged > share * enlarged.max().clamp(min=0)
