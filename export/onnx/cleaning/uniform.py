"""Constants that a cut leaves: a branch removed whole has the same output at every position and for every image.

Torch exports such a value expanded to the batch and to every position, through what follows it (a BatchNorm, an activation),
and as a full map into a sum. The sum accepts the value before it was expanded as well.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .folding import BINARY, UNARY, compute
from .graph import Graph, attribute, is_standard


def replace_uniform_operands(graph: Graph) -> int:
    """Replace expanded constants by constants where the other operand has the full shape; returns how many were read there."""
    values = uniform_values(graph)
    names: dict[str, str] = {}
    found = 0
    for node in list(graph.nodes):
        if not is_standard(node, *BINARY) or node.output[0] in values:
            continue
        full = graph.shape(node.output[0])
        others = [name for name in node.input if name not in values and graph.array(name) is None]
        if full is None or not any(graph.shape(name) == full for name in others):
            continue
        for index, name in enumerate(node.input):
            if name in values:
                if name not in names:
                    names[name] = graph.add_constant(f"{name}_everywhere", values[name])
                graph.reread(node, index, names[name])
                found += 1
    return found


def uniform_values(graph: Graph) -> dict[str, NDArray[Any]]:
    """For each value that is an expanded constant an array of its rank that broadcasts to it."""
    found: dict[str, NDArray[Any]] = {}
    for node in graph.nodes:
        shape = graph.shape(node.output[0]) if len(node.output) == 1 else None
        if shape is None or not shape:
            continue
        read = {name: found.get(name, graph.array(name)) for name in node.input if name}
        value = _uniform(graph, node, read, found)
        if value is not None:
            value = value.reshape([1] * (len(shape) - value.ndim) + list(value.shape))
            if any(size not in (1, whole) for size, whole in zip(value.shape, shape, strict=True)):
                continue
            found[node.output[0]] = value
    return found


def _uniform(
    graph: Graph, node: Any, read: dict[str, NDArray[Any] | None], known: dict[str, NDArray[Any]]
) -> NDArray[Any] | None:
    import onnx

    if is_standard(node, "ConstantOfShape"):
        value = attribute(node, "value")
        return np.zeros((1,), np.float32) if value is None else onnx.numpy_helper.to_array(value).reshape(1)
    if is_standard(node, "Expand"):
        return read[node.input[0]]
    if not read or any(value is None for value in read.values()) or not known.keys() & read.keys():
        return None
    if is_standard(node, *UNARY, *BINARY):
        return compute(node, read, graph.opset)[0]
    if is_standard(node, "BatchNormalization") and not attribute(node, "training_mode", 0):
        source, scale = read[node.input[0]], read[node.input[1]]
        assert source is not None
        assert scale is not None
        whole = np.broadcast_to(source, (1, len(scale), *source.shape[2:]))
        return compute(node, {**read, node.input[0]: whole}, graph.opset)[0]
    return None
