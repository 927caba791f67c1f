"""Single operations as ONNX graphs of any width, to be timed, in float32, float16 or int8."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .timed_calls import LAYERS, Case

_OPSET, _IR_VERSION = 20, 10
SCALE = 6 / 255
"""The step of quantised values: with it, and with zero at 0, quantising is itself a ReLU and a ReLU6, which runtimes drop."""
_ABSORBED = ("Relu", "Relu6")
"""Activations that a quantised layer absorbs: its result is quantised behind them only."""


def layer_graph(
    case: Case, outputs: int, inputs: int, batch: int, precision: str = "fp32", symmetric: bool = False
) -> bytes:
    """One operation, with the bias and activation that belong to it, as a serialised ONNX model on seeded weights.

    A join is a depthwise 1x1 convolution whose input, itself a result, is added to its result; :func:`overhead_graph` gives it
    without the sum.

    Inputs and outputs have the precision's own type, as between the layers of a whole file, and the batch is fixed.

    Args:
        inputs: input channels; ignored where the time depends on one width only, which is ``outputs``.
        precision: fp32, fp16 or int8, which is written in QDQ form.
        symmetric: whether int8's activations are signed, as on a GPU.
    """
    graph = _Graph(batch, precision, symmetric)
    if case.kind in LAYERS:
        last = (_convolution if case.kind == "conv" else _linear)(graph, case, outputs, inputs)
    else:
        last = _operation(graph, case, outputs)
    if case.activation and case.activation not in _ABSORBED:
        last = graph.requantised(last)
    return graph.finish(_activated(graph, case.activation, last))


def overhead_graph(case: Case, width: int, batch: int, precision: str = "fp32", symmetric: bool = False) -> bytes:
    """What is timed along with an operation's graph and is not its own: a session's call, and of a join the layer before it."""
    if case.kind != "join":
        return empty_graph(batch)
    graph = _Graph(batch, precision, symmetric)
    return graph.finish(_before_join(graph, case, width)[0])


def empty_graph(batch: int) -> bytes:
    """A graph that does almost nothing, to time the overhead of calling a session."""
    graph = _Graph(batch, "fp32", False)
    return graph.finish(graph.node("Relu", [graph.input("x", [batch, 1])]))


def _before_join(graph: "_Graph", case: Case, width: int) -> tuple[str, str]:
    """The result of the layer that a join follows, and the layer's input."""
    x = graph.input("x", [graph.batch, width, *case.places])
    if not graph.quantised:  # a result has the runtime's own layout, an input of the graph has not
        x = graph.node("MaxPool", [x], kernel_shape=(1, 1))
    return graph.node("Conv", [x, graph.weight("w", (width, 1, 1, 1)), graph.bias("b", width)], group=width), x


def _convolution(graph: "_Graph", case: Case, outputs: int, inputs: int) -> str:
    inputs = outputs if case.groups == 0 else inputs
    groups = case.groups or outputs
    x = graph.input("x", [graph.batch, inputs, *case.places])
    weight = graph.weight("w", (outputs, inputs // groups, *case.kernel))
    bias = graph.bias("b", outputs)
    attributes = {"kernel_shape": case.kernel, "strides": case.stride, "pads": case.padding, "dilations": case.dilation}
    return graph.node("Conv", [x, weight, bias], group=groups, **attributes)


def _linear(graph: "_Graph", case: Case, outputs: int, inputs: int) -> str:
    x = graph.input("x", [graph.batch, *case.places, inputs])
    if not case.places:
        return graph.node("Gemm", [x, graph.weight("w", (outputs, inputs)), graph.bias("b", outputs)], transB=1)
    product = graph.requantised(graph.node("MatMul", [x, graph.weight("w", (inputs, outputs), axis=1)]))
    return graph.node("Add", [product, graph.constant("b", 0.1 * graph.noise(outputs))])


def _operation(graph: "_Graph", case: Case, width: int) -> str:
    """The output of an operation without weights of its own, before its activation."""
    shape = [graph.batch, width, *case.places]
    if case.kind == "join":
        made, x = _before_join(graph, case, width)
        return graph.node("Add", [graph.requantised(made), x])
    if case.kind == "pad":
        weight = graph.weight("w", (width * case.groups, width, 1, 1))
        x = graph.input("x", shape)
        return graph.node("Conv", [x, weight, graph.bias("b", width * case.groups)], strides=case.stride)
    if case.kind == "concat":
        parts = [("x", width - width // 2), ("z", width // 2)]
        names = [graph.input(name, [graph.batch, size, *case.places]) for name, size in parts if size]
        return graph.node("Concat", names, axis=1)
    x = graph.input("x", shape)
    if case.kind in ("maxpool", "averagepool"):
        op = "MaxPool" if case.kind == "maxpool" else "AveragePool"
        return graph.node(op, [x], kernel_shape=case.kernel, strides=case.stride, pads=case.padding)
    if case.kind == "globalpool":
        return graph.node("GlobalAveragePool", [x])
    if case.kind == "norm":
        given = {"scale": graph.noise(width), "shift": graph.noise(width), "mean": graph.noise(width)}
        names = [graph.constant(name, values) for name, values in given.items()]
        return graph.node("BatchNormalization", [x, *names, graph.constant("variance", np.ones(width, np.float32))])
    if case.kind in ("add", "multiply", "gate"):
        other = [graph.batch, width, *(1 for _ in case.places)] if case.kind == "gate" else shape
        return graph.node("Add" if case.kind == "add" else "Mul", [x, graph.input("z", other)])
    return x


def _activated(graph: "_Graph", name: str, last: str) -> str:
    if not name:
        return last
    if name == "Relu6":
        return graph.node("Clip", [last, graph.constant("low", np.float32(0)), graph.constant("high", np.float32(6))])
    if name == "Silu":
        return graph.node("Mul", [last, graph.requantised(graph.node("Sigmoid", [last]))])
    return graph.node(name, [last])


class _Graph:
    """An ONNX graph under construction."""

    def __init__(self, batch: int, precision: str, symmetric: bool) -> None:
        from onnx import TensorProto

        self.batch, self.quantised = batch, precision == "int8"
        self.real = np.float16 if precision == "fp16" else np.float32
        self.level = np.int8 if symmetric else np.uint8
        real = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self.kind = (TensorProto.INT8 if symmetric else TensorProto.UINT8) if self.quantised else real
        self._generator = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}

    def noise(self, *shape: int) -> NDArray[np.float32]:
        return self._generator.standard_normal(shape, dtype=np.float32)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def input(self, name: str, shape: Sequence[int]) -> str:
        from onnx import helper

        self._inputs.append(helper.make_tensor_value_info(name, self.kind, shape))
        return self._dequantised(name, self._step(), self._zero()) if self.quantised else name

    def constant(self, name: str, values: Any) -> str:
        self._constants[name] = np.asarray(values, self.real)
        return name

    def weight(self, name: str, shape: tuple[int, ...], axis: int = 0) -> str:
        if not self.quantised:
            return self.constant(name, 0.1 * self.noise(*shape))
        self._constants[name] = self._generator.integers(-64, 64, shape, dtype=np.int8)
        self._constants[f"{name}_zero"] = np.zeros(shape[axis], np.int8)
        return self._dequantised(name, self._steps(f"{name}_step", shape[axis]), f"{name}_zero", axis)

    def bias(self, name: str, width: int) -> str:
        if not self.quantised:
            return self.constant(name, 0.1 * self.noise(width))
        self._constants[name] = self._generator.integers(-64, 64, width, dtype=np.int32)
        self._constants[f"{name}_zero"] = np.zeros(width, np.int32)
        return self._dequantised(name, self._steps(f"{name}_step", width, SCALE), f"{name}_zero", 0)

    def requantised(self, name: str) -> str:
        """A value as the next operation reads it: quantised and back in int8, as it is otherwise."""
        if not self.quantised:
            return name
        levels = self.node("QuantizeLinear", [name, self._step(), self._zero()])
        return self._dequantised(levels, self._step(), self._zero())

    def finish(self, last: str) -> bytes:
        """The model with ``last`` as its output."""
        from onnx import checker, helper, numpy_helper

        if self.quantised:
            last = self.node("QuantizeLinear", [last, self._step(), self._zero()])
        rank = len(self._inputs[0].type.tensor_type.shape.dim)
        graph = helper.make_graph(
            self._nodes,
            "operation",
            self._inputs,
            [helper.make_tensor_value_info(last, self.kind, [None] * rank)],
            [numpy_helper.from_array(values, name) for name, values in self._constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        checker.check_model(model)
        return bytes(model.SerializeToString())

    def _dequantised(self, name: str, step: str, zero: str, axis: int | None = None) -> str:
        more = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", [name, step, zero], **more)

    def _steps(self, name: str, count: int, factor: float = 1.0) -> str:
        self._constants[name] = np.full(count, SCALE * factor, np.float32)
        return name

    def _step(self) -> str:
        self._constants["step"] = np.float32(SCALE) * np.ones((), np.float32)
        return "step"

    def _zero(self) -> str:
        self._constants["zero"] = np.zeros((), self.level)
        return "zero"
