"""What every node of a traced network does, as attribution rules distinguish it.

A node is a ``point`` (where a layer's output is read), or it moves values, is linear, an activation, a maximum or a product.
"""

import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules import batchnorm, dropout, padding, pooling
from torch.nn.modules.conv import _ConvNd

from ...common.errors import InputError
from ...network.graph.execution import image_dependent
from ...network.graph.leaf_modules import Add, Concatenate, Multiply, ZeroPadChannels
from ...network.graph.stand_ins import Constant, Subsample
from ...network.graph.trace import ACTIVATIONS

_MOVES = (  # modules that only pass or move values
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad2d,
    dropout._DropoutNd,
    Concatenate,
    ZeroPadChannels,
    Subsample,
    Constant,
)
_LINEAR = (
    _ConvNd,
    nn.Linear,
    nn.Upsample,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    padding._ReflectionPadNd,
    padding._ReplicationPadNd,
    batchnorm._BatchNorm,
    Add,
)
_MAXIMA = (pooling._MaxPoolNd, pooling._AdaptiveMaxPoolNd)
_MOVING_CALLS = (
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.chunk,
    torch.split,
    torch.cat,
    torch.concat,
    torch.stack,
    operator.getitem,
    F.dropout,
    *(
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "contiguous",
        "clone",
    ),
)
_LINEAR_CALLS = (
    *(torch.mean, torch.sum, torch.add, torch.sub, torch.neg, "mean", "sum", "add", "sub", "neg"),
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.neg),
    *(F.interpolate, F.avg_pool2d, F.conv2d, F.linear),
)
_PRODUCTS = (torch.mul, "mul", operator.mul, operator.imul)
_QUOTIENTS = (torch.div, "div", operator.truediv)


class Point(nn.Module):
    """Where a layer's output is read: all its readers read it here."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def node_kinds(traced: fx.GraphModule, method: str, others: str, *, products: bool) -> list[tuple[fx.Node, str]]:
    """What every node that depends on the images does: ``point``, ``move``, ``linear``, ``activation``, ``maximum`` or
    ``product``.

    Args:
        traced: the network.
        method: the attribution method, for the error message.
        others: methods that the error message suggests instead.
        products: whether the method has a rule for products of two values that depend on the images.

    Raises:
        InputError: the method has no rule for a node.
    """
    kinds = []
    flowing, modules = image_dependent(traced), dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node not in flowing or node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module":
            module = modules[str(node.target)]
            kind = _kind_of_module(module, sum(source in flowing for source in node.all_input_nodes), products)
            what, where = type(module).__name__, str(node.target)
        else:
            kind = _kind_of_call(node, flowing)
            what, where = str(getattr(node.target, "__name__", node.target)), node.name
        if kind is None:
            raise InputError(f"{method} has no rule for {what} in layer {where}; use {others}.")
        kinds.append((node, kind))
    return kinds


def _kind_of_module(module: nn.Module, flowing_inputs: int, products: bool) -> str | None:
    if isinstance(module, Point):
        return "point"
    if isinstance(module, ACTIVATIONS):
        return "activation"
    if isinstance(module, _MAXIMA) and not getattr(module, "return_indices", False):
        return "maximum"
    if isinstance(module, Multiply):
        return "linear" if flowing_inputs == 1 else "product" if products else None
    if isinstance(module, batchnorm._BatchNorm) and module.running_mean is None:
        return None  # it depends on the other images of the batch
    if isinstance(module, _LINEAR):
        return "linear"
    return "move" if isinstance(module, _MOVES) else None


def _kind_of_call(node: fx.Node, flowing: set[fx.Node]) -> str | None:
    if node.target in _MOVING_CALLS or getattr(node.target, "__name__", "") == "stochastic_depth":
        return "move"
    if node.target in _LINEAR_CALLS:
        return "linear"
    if sum(source in flowing for source in node.args) != 1:
        return None
    scaled = node.target in _PRODUCTS or (node.target in _QUOTIENTS and node.args[0] in flowing)
    return "linear" if scaled else None
