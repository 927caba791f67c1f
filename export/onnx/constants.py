"""Constants that a cut left in an ONNX graph: a branch removed whole has the same output at every position.

Torch exports it broadcast to the batch and to every position, through the following BatchNorm, and added as a full map. The
sum accepts a precomputed ``[1, C, 1, 1]`` as well.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray


def fold_constant_branches(model: Any) -> int:
    """Fold constant branches of sums into ``[1, C, 1, 1]``; the ``ModelProto`` is changed in place.

    Returns:
        The number of folded branches.
    """
    import onnx

    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return 0  # reads by inner graphs are not analysed
    known = {tensor.name: tensor for tensor in graph.initializer}
    folded = 0
    for node in [node for node in graph.node if node.op_type == "Expand" and node.input[0] in known]:
        value = onnx.numpy_helper.to_array(known[node.input[0]])
        if value.ndim != 4 or value.shape[0] != 1 or value.shape[2:] != (1, 1):
            continue
        last = node
        readers = _readers(graph, last.output[0])
        if len(readers) == 1 and readers[0].op_type == "BatchNormalization" and set(readers[0].input[1:]) <= set(known):
            last = readers[0]
            value = _normalised(value, last, [onnx.numpy_helper.to_array(known[name]) for name in last.input[1:]])
            readers = _readers(graph, last.output[0])
        if not readers or any(reader.op_type != "Add" for reader in readers):
            continue
        name = f"{last.output[0]}_everywhere"
        graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        for reader in readers:
            for index, source in enumerate(reader.input):
                if source == last.output[0]:
                    reader.input[index] = name
        folded += 1
    if folded:
        _drop_unread(graph)
    return folded


def _readers(graph: Any, name: str) -> list[Any]:
    return [node for node in graph.node if name in node.input]


def _normalised(value: NDArray[Any], node: Any, parameters: list[NDArray[Any]]) -> NDArray[Any]:
    scale, bias, mean, variance = (parameter.reshape(1, -1, 1, 1) for parameter in parameters)
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    result: NDArray[Any] = (value - mean) / np.sqrt(variance + epsilon) * scale + bias
    return result.astype(value.dtype)


def _drop_unread(graph: Any) -> None:
    """Remove nodes, initializers and shapes that nothing reads any more."""
    while True:
        read = Counter(name for node in graph.node for name in node.input) + Counter(out.name for out in graph.output)
        unread = [node for node in graph.node if not any(read[name] for name in node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    made = {name for node in graph.node for name in node.output}
    for tensor in [tensor for tensor in graph.initializer if not read[tensor.name]]:
        graph.initializer.remove(tensor)
    for info in [info for info in graph.value_info if info.name not in made]:
        graph.value_info.remove(info)
