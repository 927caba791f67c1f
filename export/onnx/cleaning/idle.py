"""Operations that change nothing: sums with zero, activations of what has that range already, identities."""

import math
from typing import Any

import numpy as np

from .graph import Graph, is_standard

_SAME_RANGE = (
    "Identity",
    "MaxPool",
    "Slice",
    "Gather",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "GlobalMaxPool",
)
"""Their outputs are some of the values of their first input."""
_AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum")
_NOT_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Sigmoid", "Softmax", "Softplus")
_TWICE = ("Abs", "Ceil", "Floor", "Round", "Sign")
"""Applied twice they give what they give once."""
Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)


def remove_idle(graph: Graph) -> int:
    """Remove what changes nothing; returns how many nodes went."""
    ranges: dict[str, Range] = {}
    found = 0
    for node in list(graph.nodes):
        ranges[node.output[0]] = _range(graph, node, ranges)
        source = _equal_input(graph, node, ranges)
        if source is not None and graph.bypass(node, source):
            found += 1
    return found


def _equal_input(graph: Graph, node: Any, ranges: dict[str, Range]) -> str | None:
    """The input that a node's output always equals, with its shape."""
    if not node.input or len(node.output) != 1:
        return None
    first = node.input[0]
    if is_standard(node, "Identity"):
        return str(first)
    if is_standard(node, "Relu", "Clip"):
        low, high = _bounds(graph, node)
        known = ranges.get(first, ANY)
        return str(first) if low <= known[0] and known[1] <= high else None
    if is_standard(node, *_TWICE):
        maker = graph.maker(first)
        return str(first) if maker is not None and is_standard(maker, node.op_type) else None
    if is_standard(node, "Add", "Sub", "Mul", "Div"):
        return _neutral(graph, node)
    return None


def _neutral(graph: Graph, node: Any) -> str | None:
    neutral = 0 if node.op_type in ("Add", "Sub") else 1
    pairs = [tuple(node.input)] if node.op_type in ("Sub", "Div") else [tuple(node.input), tuple(node.input)[::-1]]
    for value, other in pairs:
        constant, shape = graph.array(other), graph.shape(value)
        if constant is None or shape is None or shape != graph.shape(node.output[0]):
            continue
        if graph.is_float(value) and (constant == neutral).all():
            return str(value)
    return None


def _bounds(graph: Graph, node: Any) -> Range:
    """The range that a ``Relu`` or ``Clip`` limits its input to; of none if it is not known."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    found = []
    for place, default in ((1, -math.inf), (2, math.inf)):
        if len(node.input) <= place or not node.input[place]:
            found.append(default)
            continue
        value = graph.array(node.input[place])
        found.append(float(np.ravel(value)[0]) if value is not None and value.size == 1 else -default)
    return found[0], found[1]


def _range(graph: Graph, node: Any, ranges: dict[str, Range]) -> Range:
    """The least and the largest value that a node's first output may have."""
    if not node.input:
        return ANY
    low, high = ranges.get(node.input[0], ANY)
    if is_standard(node, "Relu", "Clip"):
        least, most = _bounds(graph, node)
        return (min(max(low, least), most), max(min(high, most), least)) if least <= most else ANY
    if is_standard(node, *_SAME_RANGE):
        return low, high
    if is_standard(node, "Concat"):
        parts = [ranges.get(name, ANY) for name in node.input]
        return min(part[0] for part in parts), max(part[1] for part in parts)
    averaged = is_standard(node, *_AVERAGES) and low >= 0
    return (0.0, math.inf) if averaged or is_standard(node, *_NOT_NEGATIVE) else ANY
