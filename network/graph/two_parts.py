"""A traced network in two parts that share its layers: the trunk up to one feature map, and the head after it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..hooks import pick_logits
from .execution import output_node
from .reach import needed_for
from .segment import Segment


class TwoParts(nn.Module):
    """A network split in two at a node on every path to the output.

    ``trunk`` and ``head`` share their layers with ``view``, so that training the parts trains the network. ``trunk`` returns
    the features and any other values that the head needs (such as the number of images), ``head`` the class scores.
    ``has_extra``: whether there are such other values.
    """

    def __init__(self, view: fx.GraphModule, target: fx.Node) -> None:
        super().__init__()
        segment = Segment(view, target, [output_node(view)])
        self._trunk = _trunk(view, target, segment.reads)
        self._head = _head(view, target, segment)
        self.has_extra = bool(segment.reads)

    def trunk(self, images: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """Features ``[n, N, …]`` of images ``[n, C, H, W]``, and the other values that the head needs."""
        features, *extra = self._trunk(images)
        return features, tuple(extra)

    def head(self, features: Tensor, extra: tuple[Any, ...] = ()) -> Tensor:
        """Class scores ``[n, classes]``."""
        return pick_logits(self._head(features, *extra))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(*self.trunk(images))

    def whole_state(self) -> dict[str, Tensor]:
        """Parameters and buffers by their names in the network."""
        return {**self._trunk.state_dict(), **self._head.state_dict()}


@contextlib.contextmanager
def keeping_statistics(module: nn.Module) -> Iterator[None]:
    """Freeze BatchNorm's running statistics; in training mode it still normalises by the batch."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm) and child.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)


def pooled(features: Tensor) -> Tensor:
    """Means over positions, ``[n, N]``, of features ``[n, N, …]``."""
    return features if features.dim() == 2 else features.flatten(2).mean(2)


def masked(features: Tensor, mask: Tensor) -> Tensor:
    """Features ``[n, N, …]`` times a mask ``[n, N]``, the same at every position."""
    return features * mask.reshape(*mask.shape, *[1] * (features.dim() - 2)).to(features.dtype)


def _trunk(view: fx.GraphModule, target: fx.Node, extra: tuple[fx.Node, ...]) -> fx.GraphModule:
    needed = needed_for([target, *extra])
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in view.graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output((copies[target], *(copies[node] for node in extra)))
    return fx.GraphModule(view, graph)


def _head(view: fx.GraphModule, target: fx.Node, segment: Segment) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {target: graph.placeholder("features")}
    for index, node in enumerate(segment.reads):
        copies[node] = graph.placeholder(f"beside_{index}")
    for node in segment.nodes:
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], copies.__getitem__))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(view, graph)
