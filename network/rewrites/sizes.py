"""Numbers of channels written out in reshapes become sizes: ``view(-1, 32 * 16 * 16)`` and ``view(n, 32, 16, 16)``."""

import math
from typing import Any

import torch
from torch import Tensor, fx

from ..provenance.labelling import Labelling
from ..provenance.moves import varying
from ..provenance.operations import operation_name
from .edits import call

_RESHAPES = ("view", "reshape")


def free_sizes(view: fx.GraphModule, labelling: Labelling) -> list[str]:
    """Let the labelled dimension of every reshape be what is left; a note for each."""
    notes = []
    for node in list(view.graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        name = operation_name(node)
        labels, value = labelling.of.get(node), labelling.values.get(node)
        if name == "scaled_dot_product_attention" and "scale" not in node.kwargs and isinstance(node.args[0], fx.Node):
            width = labelling.values[node.args[0]].shape[-1]
            node.kwargs = {**node.kwargs, "scale": 1 / math.sqrt(width)}
        if not isinstance(labels, Tensor) or not isinstance(value, Tensor) or len(varying(labels)) != 1:
            continue
        (dim,) = varying(labels)
        if name in _RESHAPES:
            notes += _reshape(view, node, labelling, dim)
        elif name in ("expand", "broadcast_to"):
            notes += _expand(node, dim)
        elif name == "unflatten":
            notes += _unflatten(node, value, dim)
    return notes


def _sizes(node: fx.Node) -> list[Any]:
    """The sizes that a reshape is given, in one form."""
    given: Any = node.kwargs.get("shape", node.kwargs.get("size"))
    if given is None:
        given = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else node.args[1:]
    return list(given)


def _reshape(view: fx.GraphModule, node: fx.Node, labelling: Labelling, dim: int) -> list[str]:
    sizes, value = _sizes(node), labelling.values[node]
    if len(sizes) != value.dim() or not isinstance(sizes[dim], int) or sizes[dim] == -1:
        return []
    source: Any = node.args[0]
    before, own = labelling.values[source], labelling.of[source]
    left = [other for other, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    if left:
        same = _same_dim(own, labelling.of[node], before, value, dim)
        if same is not None:
            sizes[dim] = call(view, node, "size", (source, same))
        elif left[0] == 0 and before.shape[0] == value.shape[0]:
            sizes[0], sizes[dim] = call(view, node, "size", (source, 0)), -1
        elif left[0] > 0:  # images lie in the first dimension
            sizes[left[0]], sizes[dim] = value.shape[left[0]], -1
        else:
            return []
    else:
        sizes[dim] = -1
    written = value.shape[dim]
    node.args = (source, *sizes) if node.op == "call_method" else (source, tuple(sizes))
    node.kwargs = {}
    return [f"{node.name}: the number {written} is a size"]


def _same_dim(before: Any, after: Tensor, source: Tensor, value: Tensor, dim: int) -> int | None:
    """The source's dimension with the same channels in the same order."""
    if not isinstance(before, Tensor) or len(varying(before)) != 1:
        return None
    (own,) = varying(before)
    same = source.shape[own] == value.shape[dim] and torch.equal(before.flatten(), after.flatten())
    return own if same else None


def _expand(node: fx.Node, dim: int) -> list[str]:
    sizes = _sizes(node)
    if dim >= len(sizes) or not isinstance(sizes[dim], int) or sizes[dim] == -1:
        return []
    source: Any = node.args[0]
    sizes[dim] = -1
    node.args = (source, *sizes) if node.op == "call_method" else (source, tuple(sizes))
    node.kwargs = {}
    return []


def _unflatten(node: fx.Node, value: Tensor, dim: int) -> list[str]:
    if node.kwargs or len(node.args) != 3:
        return []
    source, at, sizes = node.args[0], int(str(node.args[1])), node.args[2]
    sizes = list(sizes)  # type: ignore[arg-type]
    first = at % (value.dim() - len(sizes) + 1)
    inside = dim - first
    if not 0 <= inside < len(sizes) or sizes[inside] == -1:
        return []
    sizes = [value.shape[first + place] for place in range(len(sizes))]
    sizes[inside] = -1
    node.args = (source, at, tuple(sizes))
    return [f"{node.name}: the number {value.shape[dim]} is a size"]
