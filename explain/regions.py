"""Regions of the input: boxes of pixels, what of the image a place in the network sees, where a map is strong."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..errors import InputError
from ..network.execution import is_image_map, output_node, run_graph
from ..network.trace import PER_CHANNEL


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
    view: fx.GraphModule, node: fx.Node, places: Sequence[tuple[int, int]], example: Tensor
) -> list[Box]:
    """For each place the smallest box with all pixels on which it can depend, whatever the weights.

    That is the theoretical receptive field, cut at the image's edge: the support of the place's gradient in a copy of the
    network, up to the node, in which all weights are positive and activations, normalisations and maxima are replaced by
    what passes every gradient. Branches, pools, slices and gates are followed; what sees everything (squeeze and
    excitation) gives the whole image.

    Args:
        view: a traced network; it is left as it was.
        node: gives a feature map ``[n, C, h, w]``.
        places: (row, column) in it.
        example: of an image only the shape counts, ``[n, C, H, W]``.

    Raises:
        InputError: the node gives no feature map, has no such place, or depends on no pixel.
    """
    positive, end = _positive_copy(view, node)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *example.shape[1:], generator=generator, dtype=torch.float64) + 0.5
    image.requires_grad_()
    with torch.enable_grad():
        value = run_graph(positive, image, [end])[end]
    if not is_image_map(value):
        raise InputError(
            f"{node.name} gives no feature map of channels x height x width. Name a convolution or a block."
        )
    height, width = value.shape[2:]
    boxes = []
    for row, column in places:
        if not (0 <= row < height and 0 <= column < width):
            raise InputError(
                f"{node.name} gives a map of {height} rows and {width} columns; ({row}, {column}) is not in it."
            )
        gradient = torch.zeros_like(image)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value[0, :, row, column].sum(), image, retain_graph=True)
        if not bool(gradient.any()):
            raise InputError(f"What {node.name} gives at ({row}, {column}) depends on no pixel. Choose another place.")
        boxes.append(supporting_region(gradient[0]))
    return boxes


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


class _Sum(nn.Module):
    """The sum over a pool's windows, of the size that the pool gives: its gradient reaches all that the maximum is of."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool
        self.kernel_size, self.padding = _pair(pool.kernel_size), _pair(pool.padding)
        self.stride, self.dilation = _pair(pool.stride), _pair(pool.dilation)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.pool(x).shape[2:]
        (down, right), (above, left) = self.stride, self.padding
        padded = F.pad(x, (left, left + right, above, above + down))  # windows that ceil_mode lets hang over the edge
        window = torch.ones(x.shape[1], 1, *self.kernel_size, dtype=x.dtype, device=x.device)
        sums = F.conv2d(padded, window, stride=self.stride, dilation=self.dilation, groups=x.shape[1])
        return sums[:, :, :height, :width]


_PASSING: dict[Any, Any] = {torch.amax: torch.mean, "amax": "mean", torch.maximum: torch.add, "maximum": "add"}


def _positive_copy(view: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, fx.Node]:
    """The network up to the node, float64 on the CPU, with positive weights, where all that is read has a gradient."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for each in view.graph.nodes:
        copies[each] = graph.node_copy(each, copies.__getitem__)
        copies[each].target = _PASSING.get(each.target, each.target)
        if each is node:
            break
    graph.output(copies[node])
    part = fx.GraphModule(view, graph)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    positive = copy.deepcopy(part).cpu().double().eval()
    for name, child in list(positive.named_modules(remove_duplicate=False)):
        passing: nn.Module | None = None
        if isinstance(child, PER_CHANNEL):
            passing = nn.Identity()
        elif isinstance(child, nn.MaxPool2d):
            passing = _Sum(child)
        elif isinstance(child, nn.AdaptiveMaxPool2d):
            passing = nn.AdaptiveAvgPool2d(child.output_size)
        if passing is not None:
            positive.set_submodule(name, passing)
    generator = torch.Generator().manual_seed(0)
    for parameter in positive.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:  # weights of about one over what they sum keep values far from overflow
            parameter.uniform_(0.5, 1.5, generator=generator).div_(parameter[0].numel())
        else:
            parameter.fill_(1.0)
    return positive, output_node(positive).all_input_nodes[0]


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
