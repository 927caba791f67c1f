"""Traced networks rewritten so that captum's attributions are correct.

captum works on modules and on the gradients of their inputs and outputs. Its DeepLIFT treats a nonlinearity that is not in its
table as linear, and loses contributions of overlapping pooling windows; its LRP supports few modules, mixes relevance with
gradients where branches of several kinds read one tensor, and cannot report the relevance at an activation. The views here
compute the same values as the network, with modules for which captum's arithmetic is correct.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...network.graph.trace import reading_nodes, trace
from ...network.hooks import pick_logits, reading_activations
from ...network.network import Network
from .node_kinds import Point

Attribute = Callable[[Tensor, Tensor], list[Tensor]]
"""(normalised images ``[n, C, H, W]``, labels ``[n]``) to the attributions at every point, each of its activation's shape."""


class _Gather(nn.Module):
    def forward(self, scores: Tensor, *_activations: Tensor) -> Tensor:
        return scores


class GatheredPoints(nn.Module):
    """Outputs class scores ``[n, classes]``; the activations of all points pass through one module, ``gather``, after the
    scores.

    captum attributes to all inputs of one module in one pass; the first attribution is that of the scores.
    """

    def __init__(self, traced: fx.GraphModule, names: tuple[str, ...]) -> None:
        super().__init__()
        self.traced, self.names, self.gather = traced, names, _Gather()

    def forward(self, images: Tensor) -> Tensor:
        with reading_activations(self.traced, self.names) as read:
            scores = pick_logits(self.traced(images))
        result: Tensor = self.gather(scores, *(read[name][0] for name in self.names))
        return result


class ClassScores(nn.Module):
    """Picks the class scores ``[n, classes]`` from the output of the traced network."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, images: Tensor) -> Tensor:
        return pick_logits(self.traced(images))


@dataclass(frozen=True)
class CaptumView:
    """A traced copy of a network in evaluation mode in which every call is a separate module.

    ``points`` names, for each convolution and linear layer, the :class:`Point` of every call whose output reaches the class
    scores; ``channels`` is each layer's number of kernels, and ``channels_last`` says whether they are the last dimension.
    """

    traced: fx.GraphModule
    points: Mapping[str, tuple[str, ...]]
    channels: Mapping[str, int]
    channels_last: Mapping[str, bool]

    @property
    def names(self) -> tuple[str, ...]:
        """All points, in network order."""
        return tuple(name for names in self.points.values() for name in names)


def make_view(network: Network, device: str = "cpu") -> CaptumView:
    """Trace a network and put a :class:`Point` wherever a layer's output is read.

    Raises:
        InputError: the network's forward cannot be traced.
    """
    traced = trace(network.module, network.example()).eval().to(device)
    points: dict[str, tuple[str, ...]] = {}
    for layer, nodes in reading_nodes(traced).items():
        for node in nodes:
            name = f"secateur_point_{sum(map(len, points.values()))}"
            _insert_after(traced, node, name, Point())
            points[layer] = (*points.get(layer, ()), name)
    _give_every_call_its_module(traced)
    settle(traced)
    names = [name for every in points.values() for name in every]
    with torch.enable_grad(), reading_activations(traced, names) as read:
        scores = pick_logits(traced(network.example().to(device).requires_grad_()))
        activations = [read[name][0] for name in names]
        gradients = torch.autograd.grad(scores.sum(), activations, allow_unused=True)
    reached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    last = {layer: isinstance(network.module.get_submodule(layer), nn.Linear) for layer in points}
    return CaptumView(
        traced,
        {layer: tuple(name for name in every if name in reached) for layer, every in points.items()},
        {layer: read[every[0]][0].shape[-1 if last[layer] else 1] for layer, every in points.items()},
        last,
    )


def _insert_after(traced: fx.GraphModule, node: fx.Node, name: str, module: nn.Module) -> None:
    traced.add_submodule(name, module)
    with traced.graph.inserting_after(node):
        new = traced.graph.call_module(name, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def own_inputs(traced: fx.GraphModule, node: fx.Node, sources: tuple[Any, ...]) -> None:
    """Give a node its own copies of its inputs, since captum's hooks on a tensor belong to one module."""
    for position, source in enumerate(sources):
        with traced.graph.inserting_before(node):
            copied = traced.graph.call_method("clone", (source,))
        node.update_arg(position, copied)


def swap(
    traced: fx.GraphModule,
    node: fx.Node,
    module: nn.Module,
    arguments: tuple[Any, ...] | None = None,
    options: Mapping[str, Any] | None = None,
) -> fx.Node:
    """Replace a node by a call of a module, by default with the node's own arguments."""
    name = f"secateur_swap_{node.name}"
    traced.add_submodule(name, module)
    with traced.graph.inserting_after(node):
        new = traced.graph.call_module(name, node.args if arguments is None else arguments, dict(options or {}))
    node.replace_all_uses_with(new)
    traced.graph.erase_node(node)
    return new


def _give_every_call_its_module(traced: fx.GraphModule) -> None:
    """Copy modules that are called several times, since captum stores its state on the module."""
    called: set[str] = set()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            if node.target in called:
                name = f"secateur_copy_{node.name}"
                traced.add_submodule(name, copy.deepcopy(traced.get_submodule(node.target)))
                node.target = name
            called.add(node.target)


def settle(traced: fx.GraphModule) -> None:
    """Recompile a traced network after changes of its graph."""
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
