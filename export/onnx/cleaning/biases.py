"""A constant added to what a convolution or linear layer gives goes into its bias."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, attribute, is_standard

Edit = Callable[[], None]


def move_into_biases(graph: Graph) -> int:
    """Move constants out of sums into biases, where nothing else reads the values in between; returns how many went."""
    found = 0
    for node in list(graph.nodes):
        operands = _constant_operand(graph, node)
        if operands is None:
            continue
        value, constant = operands
        edit = _absorb(graph, value, constant) if graph.shape(value) == graph.shape(node.output[0]) else None
        if edit is not None:
            edit()
            graph.bypass(node, value)
            found += 1
    return found


def _constant_operand(graph: Graph, node: Any) -> tuple[str, NDArray[Any]] | None:
    """The value and the constant that a node adds."""
    if not is_standard(node, "Add") or not graph.is_float(node.output[0]):
        return None
    for value, other in (tuple(node.input), tuple(node.input)[::-1]):
        constant = graph.array(other)
        if constant is not None and graph.array(value) is None:
            return value, constant
    return None


def _absorb(graph: Graph, name: str, constant: NDArray[Any]) -> Edit | None:
    """An edit after which a value is larger by a constant that broadcasts to it; None if there is none."""
    maker, shape = graph.maker(name), graph.shape(name)
    if maker is None or shape is None or graph.only_reader(name) is None:
        return None
    whole = constant.reshape([1] * (len(shape) - constant.ndim) + list(constant.shape))
    if is_standard(maker, "Add"):
        return _into_sum(graph, maker, whole)
    if is_standard(maker, "MaxPool") and len(maker.output) == 1:
        return _absorb(graph, maker.input[0], whole) if _per_channel(whole) is not None else None
    return _into_layer(graph, maker, whole)


def _into_sum(graph: Graph, maker: Any, constant: NDArray[Any]) -> Edit | None:
    operands = _constant_operand(graph, maker)
    if operands is not None:
        total = _sum(operands[1], constant)
        if total.size > max(operands[1].size, constant.size):
            return None
        index = list(maker.input).index(operands[0])

        def add() -> None:
            graph.reread(maker, 1 - index, graph.add_constant(f"{maker.output[0]}_constant", total))

        return add
    shape = graph.shape(maker.output[0])
    edits = (_absorb(graph, name, constant) for name in maker.input if graph.shape(name) == shape)
    return next((edit for edit in edits if edit is not None), None)


def _into_layer(graph: Graph, maker: Any, constant: NDArray[Any]) -> Edit | None:
    channels = _per_channel(constant)
    place, beta = _bias_of(maker)
    weight = graph.shape(maker.input[1]) if place else None
    if channels is None or weight is None or beta != 1:
        return None
    width = _width(maker, weight)
    bias: Any = np.zeros(1, channels.dtype)
    if len(maker.input) > place and maker.input[place]:
        bias = graph.array(maker.input[place])
    if bias is None or len(channels) not in (1, width) or bias.size not in (1, width):
        return None
    total = np.broadcast_to(_sum(bias.ravel(), channels), (width,))

    def add() -> None:
        name = graph.add_constant(f"{maker.output[0]}_bias", total)
        if len(maker.input) == place:
            graph.append_input(maker, name)
        else:
            graph.reread(maker, place, name)

    return add


def _bias_of(maker: Any) -> tuple[int, float]:
    """The place of a layer's bias among its inputs (0 for what has none), and its factor."""
    if is_standard(maker, "Conv", "ConvTranspose"):
        return 2, 1.0
    if is_standard(maker, "BatchNormalization") and not attribute(maker, "training_mode", 0):
        return 2, 1.0
    if is_standard(maker, "Gemm"):
        return 2, float(attribute(maker, "beta", 1.0))
    return 0, 0.0


def _width(maker: Any, weight: tuple[Any, ...]) -> int:
    """The number of a layer's outputs, from the shape of its weight or scale."""
    if maker.op_type == "ConvTranspose":
        return int(weight[1]) * int(attribute(maker, "group", 1))
    if maker.op_type == "Gemm":
        return int(weight[0] if attribute(maker, "transB", 0) else weight[1])
    return int(weight[0])


def _per_channel(constant: NDArray[Any]) -> NDArray[Any] | None:
    """A constant of shape ``[1, C, 1, ...]`` as ``[C]``."""
    others = (size for axis, size in enumerate(constant.shape) if axis != 1)
    return constant.ravel() if constant.ndim > 1 and all(size == 1 for size in others) else None


def _sum(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Rounded once, to the first's type."""
    total: NDArray[Any] = (first.astype(np.float64) + second.astype(np.float64)).astype(first.dtype)
    return total
