"""Labels through operations that only move elements: the operation itself is run on them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.utils._pytree import tree_map_only

from ..graph.leaf_modules import Concatenate
from .operations import MOVES, operation_name

_MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unfold, Concatenate)
_PADS = (_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd)
_JOINING = frozenset(["cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"])
_VIEWS = ("T", "mT", "H", "mH")


def is_move(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node's result holds elements of its operands, or constants, and nothing computed."""
    if node.op == "call_module":
        return isinstance(module, (*_MODULES, *_PADS))
    if node.op not in ("call_function", "call_method"):
        return False
    name = operation_name(node)
    return name in MOVES and (name != "getattr" or node.args[1] in _VIEWS)


def moved(
    node: fx.Node, module: nn.Module | None, read: Callable[[fx.Node], Any], value: Callable[[fx.Node], Any]
) -> Any:
    """The result of a move for other elements.

    ``read`` gives these as float64, 0 for what pads; ``value`` gives sizes and indices.
    """
    if isinstance(module, Concatenate):
        return torch.cat([read(source) for source in node.args], module.dim)  # type: ignore[arg-type]
    if isinstance(module, _PADS):
        modes = {_ReflectionPadNd: "reflect", _ReplicationPadNd: "replicate"}
        kind = next((name for base, name in modes.items() if isinstance(module, base)), "constant")
        padding: Any = module.padding
        return F.pad(read(node.args[0]), list(padding), kind)  # type: ignore[arg-type]
    if module is not None:
        return module(read(node.args[0]))  # type: ignore[arg-type]
    name = operation_name(node)
    if name in _JOINING:
        first = fx.node.map_arg(node.args[0] if node.args else node.kwargs["tensors"], read)
        rest = fx.node.map_arg(node.args[1:], value)
        options = fx.node.map_arg({key: given for key, given in node.kwargs.items() if key != "tensors"}, value)
        return getattr(torch, name)(first, *rest, **options)
    source = node.args[0] if node.args else node.kwargs["input"]
    elements = read(source)  # type: ignore[arg-type]
    rest = fx.node.map_arg(node.args[1:], value)
    options = fx.node.map_arg({key: given for key, given in node.kwargs.items() if key != "input"}, value)
    if name == "pad":
        given: Any = rest
        widths: Any = options.get("pad", given[0] if given else ())
        mode: Any = options.get("mode", given[1] if len(rest) > 1 else "constant")
        return F.pad(elements, list(widths), mode)
    if node.op == "call_method":
        return getattr(elements, str(node.target))(*rest, **options)
    return node.target(elements, *rest, **options)  # type: ignore[operator]


def spread(labels: Tensor, shape: torch.Size) -> Tensor:
    """Labels for every element of a value, as float64, in which every operation that moves elements works."""
    return labels.expand(shape).to(torch.float64).contiguous()


def compressed(labels: Any) -> Any:
    """Labels with size 1 in every dimension along which they do not vary; elements without one agree with any."""

    def compress(each: Tensor) -> Tensor:
        each = each.to(torch.long)
        for dim in range(each.dim()):
            if each.shape[dim] > 1:
                high = each.amax(dim, keepdim=True)
                low = torch.where(each == 0, torch.iinfo(torch.long).max, each).amin(dim, keepdim=True)
                if bool(((high == low) | (high == 0)).all()):
                    each = high
        return each

    return tree_map_only(Tensor, compress, labels)


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which compressed labels vary."""
    return [dim for dim, size in enumerate(labels.shape) if size > 1]
