"""The target layer of class-specific clusters: found, named by the user, or inserted."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from ...common.errors import InputError
from ..hooks import seeded
from .execution import run_graph
from .feature_points import FeaturePoint, feature_point, find_stages, named_points, passed_by_everything
from .leaf_modules import Add
from .reach import dependents
from .topology import class_nodes
from .trace import reading_nodes, trace

NEW_LAYER = "class_specific"
"""The name of an inserted layer."""
NEW_TARGET = f"{NEW_LAYER}.0"
"""The name of its convolution (or linear layer), which is the target."""


@dataclass(frozen=True)
class NewLayer:
    """A convolution, BatchNorm and ReLU (a linear layer and ReLU if the features have no positions) to insert after ``after``.

    The layers that read these features now read ``filters`` channels and start from new weights.
    """

    after: str
    filters: int


def find_target(view: fx.GraphModule, example: Tensor, name: str | None = None) -> FeaturePoint:
    """The target layer, as the place after its own normalisation and activation whose channels are its filters.

    By default it is the last feature map before the head that lies on every path: layer4 of a ResNet, the last convolution of
    VGG. If more than pools, norms and linear layers follow that map (such as attention in a ViT), it is the features that the
    last linear layer reads, with ``height`` and ``width`` 1.

    Args:
        name: the layer or block to use instead.

    Raises:
        InputError: there is no such layer, or none that lies on every path to the head.
    """
    heads = class_nodes(view)
    if name is not None:
        return _named(view, example, name, heads)
    try:
        last = _in_front_of_pools(view, example, find_stages(view, example, heads)[-1])
    except InputError:
        last = None
    if last is not None and _is_late(view, last.node, heads):
        return _by_layer(view, last)
    read = {node.all_input_nodes[0] for node in heads}
    if len(read) == 1:
        (node,) = read
        value: Any = _value(view, example, node)
        if value.dim() == 2 and node in passed_by_everything(view):
            return FeaturePoint(_name_of(node), node, value.shape[1], 1, 1)
    raise InputError(
        "No late layer of this network lies on every path to its head, so no target layer was found for class-specific "
        "clusters. Name one with --target."
    )


def insert_layer(module: nn.Module, example: Tensor, layer: NewLayer, seed: int = 0) -> nn.Module:
    """A traced copy of a network with a new layer inserted.

    Args:
        seed: for the weights of the new layer and of the layers that read it.

    Raises:
        InputError: the network cannot be traced, ``after`` is not on every path to the head, or what follows it cannot read
            another number of channels.
    """
    view = trace(module, example)
    point = find_target(view, example, layer.after)
    with seeded(seed):
        places = _value(view, example, point.node).dim() > 2
        new: list[nn.Module] = (
            [nn.Conv2d(point.channels, layer.filters, 3, padding=1, bias=False), nn.BatchNorm2d(layer.filters)]
            if places
            else [nn.Linear(point.channels, layer.filters)]
        )
        view.add_submodule(NEW_LAYER, nn.Sequential(*new, nn.ReLU()))
        _widen_readers(view, point, layer.filters)
    readers, node = list(point.node.users), point.node
    for index in range(len(new) + 1):  # one node for each, as tracing records them
        with view.graph.inserting_after(node):
            node = view.graph.call_module(f"{NEW_LAYER}.{index}", (node,))
    for reader in readers:
        reader.replace_input_with(point.node, node)
    view.graph.lint()
    view.recompile()
    view.eval()
    try:
        with torch.no_grad():
            view(example)
    except Exception as error:
        raise InputError(
            f"The network does not run with {layer.filters} filters after {layer.after} ({error}). What follows expects "
            f"{point.channels} channels. Leave out the new layer, or name a target directly before the head."
        ) from error
    return view


def _widen_readers(view: fx.GraphModule, point: FeaturePoint, filters: int) -> None:
    """Make what reads the target's channels read ``filters`` channels: the next layers, and the norms before them."""
    carrying = {point.node}
    for node in view.graph.nodes:
        if node in carrying or not carrying.intersection(node.all_input_nodes):
            continue
        child = view.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(child, nn.Linear):
            inputs = filters * child.in_features // point.channels
            view.set_submodule(str(node.target), nn.Linear(inputs, child.out_features, child.bias is not None))
        elif isinstance(child, _ConvNd):
            if child.groups != 1:
                raise InputError(
                    f"{node.target} reads the new layer in groups, which is not supported. Name a later target."
                )
            options = {name: getattr(child, name) for name in ("stride", "padding", "dilation", "padding_mode")}
            view.set_submodule(
                str(node.target),
                type(child)(filters, child.out_channels, child.kernel_size, bias=child.bias is not None, **options),
            )
        else:
            if isinstance(child, _BatchNorm):
                view.set_submodule(str(node.target), type(child)(filters, child.eps, child.momentum, child.affine))
            elif isinstance(child, nn.LayerNorm):
                shape = [filters if size == point.channels else size for size in child.normalized_shape]
                view.set_submodule(str(node.target), type(child)(shape, child.eps, child.elementwise_affine))
            carrying.add(node)


def _in_front_of_pools(view: fx.GraphModule, example: Tensor, point: FeaturePoint) -> FeaturePoint:
    """The point before pools, dropout and identities, which change nothing about a map's channels."""
    node = point.node
    while node.op == "call_module" and isinstance(view.get_submodule(str(node.target)), _PASSING):
        node = node.all_input_nodes[0]
    if node is point.node:
        return point
    _, channels, height, width = _value(view, example, node).shape
    return feature_point(view, node, (channels, height, width))


_PASSING = (
    *(_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd),
    *(nn.Dropout, nn.Dropout2d, nn.Identity),
)


def _by_layer(view: fx.GraphModule, point: FeaturePoint) -> FeaturePoint:
    """The point named after its layer, unless it ends a block."""
    if point.name not in (str(point.node.target), point.node.name) and ", call " not in point.name:
        return point
    own = [layer for layer, nodes in reading_nodes(view).items() if nodes == (point.node,)]
    return replace(point, name=own[0]) if own else point


def _named(view: fx.GraphModule, example: Tensor, name: str, heads: frozenset[fx.Node]) -> FeaturePoint:
    read = {_name_of(node.all_input_nodes[0]): node.all_input_nodes[0] for node in heads}
    own = reading_nodes(view).get(name)
    flat = own[-1] if own else read.get(name)
    if flat is not None and (value := _value(view, example, flat)).dim() == 2:
        point = FeaturePoint(name, flat, value.shape[1], 1, 1)
    else:
        (point,) = named_points(view, example, [name])
        point = replace(point, node=own[-1]) if own else point
    passed = passed_by_everything(view)
    order = {node: index for index, node in enumerate(view.graph.nodes)}
    if point.node not in passed or order[point.node] >= min(order[node] for node in heads):
        stages = ", ".join(stage.name for stage in find_stages(view, example, heads))
        raise InputError(
            f"{name} cannot be the target: there are paths to the head around it, which masking its filters would leave open. "
            f"Name the end of a stage: {stages}."
        )
    return point


def _is_late(view: fx.GraphModule, point: fx.Node, heads: frozenset[fx.Node]) -> bool:
    """Whether only pools, norms, activations and linear layers lie between a map and the classes."""
    for node in dependents(view, point)[1:]:
        child = view.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(child, Add | nn.MultiheadAttention) or (isinstance(child, _ConvNd) and node not in heads):
            return False
    return True


def _value(view: fx.GraphModule, example: Tensor, node: fx.Node) -> Tensor:
    with torch.no_grad():
        value: Tensor = run_graph(view, example, [node])[node]
    return value


def _name_of(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name
