"""Nodes that read nothing but constants become constants."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, attribute, is_standard

UNARY = ("Abs", "Ceil", "Clip", "Elu", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Neg",
         "Reciprocal", "Relu", "Round", "Sigmoid", "Softplus", "Sqrt", "Tanh")  # fmt: skip
BINARY = ("Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub")
"""Element by element, with the second operand broadcast to the first."""
_MOVES = ("Cast", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Reshape", "Shape", "Slice", "Squeeze", "Tile",
          "Transpose", "Unsqueeze")  # fmt: skip
FOLDED = (*UNARY, *BINARY, *_MOVES, "BatchNormalization", "ReduceMean", "ReduceSum")
SMALL = 2**16
"""Bytes that a constant may always have; a larger one must not be larger than what it is computed from."""


def fold_constants(graph: Graph) -> int:
    """Compute what depends on constants only, unless the file would grow; returns how many nodes went."""
    import onnx

    found = 0
    for node in list(graph.nodes):
        if is_standard(node, "Constant"):
            value = attribute(node, "value")
            if value is None or node.output[0] in graph.outputs:
                continue
            graph.make_constant(node, [onnx.numpy_helper.to_array(value)])
            found += 1
        elif _is_constant(graph, node):
            read: dict[str, Any] = {name: graph.array(name) for name in node.input if name}
            values = compute(node, read, graph.opset)
            if sum(value.nbytes for value in values) > max(SMALL, sum(array.nbytes for array in read.values())):
                continue
            graph.make_constant(node, values)
            found += 1
    return found


def compute(node: Any, values: Mapping[str, Any], opset: int) -> list[NDArray[Any]]:
    """The outputs of one node, by ONNX's reference implementation."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = [name for name in dict.fromkeys(node.input) if name]
    empty = onnx.TypeProto()
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype), None)
            for name in names
        ],
        [onnx.helper.make_value_info(name, empty) for name in node.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):
        found: Any = ReferenceEvaluator(model).run(None, {name: values[name] for name in names})
    return [np.asarray(value) for value in found]


def _is_constant(graph: Graph, node: Any) -> bool:
    if not is_standard(node, *FOLDED) or len(node.output) != 1 or node.output[0] in graph.outputs:
        return False
    names = [name for name in node.input if name]
    if not names or any(graph.array(name) is None for name in names):
        return False
    return not attribute(node, "training_mode", 0)
