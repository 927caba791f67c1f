"""Single layers as ONNX graphs of any width, to be timed: what a layer's time depends on, read from the network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...common.errors import InputError
from ...network.channels.zero_pad import followable
from ...network.graph.trace import trace
from ...network.hooks import frozen
from ...network.network import Network

_ACTIVATIONS: Mapping[type[nn.Module], str] = {
    nn.ReLU: "Relu",
    nn.ReLU6: "Relu6",
    nn.SiLU: "Silu",
    nn.Sigmoid: "Sigmoid",
    nn.Hardswish: "HardSwish",
    nn.Hardsigmoid: "HardSigmoid",
    nn.Tanh: "Tanh",
    nn.GELU: "Gelu",
}
_OPSET, _IR_VERSION = 20, 10


@dataclass(frozen=True)
class LayerCase:
    """Everything that a layer's time depends on besides its widths, the batch size and the machine.

    ``places``: the spatial sizes of the input (convolution), or its sizes between batch and features (linear). ``kernel``,
    ``stride`` and ``dilation`` by dimension, and ``padding`` before all dimensions, then after all, are empty for a linear
    layer. A BatchNorm after the layer counts as its bias, since ONNX Runtime folds it; ``activation`` is the one that follows.
    """

    kind: str
    places: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    activation: str = ""

    @property
    def depthwise(self) -> bool:
        """Whether the number of groups follows the width, as in a depthwise convolution."""
        return self.groups == 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_cases(network: Network) -> dict[str, tuple[LayerCase, ...]]:
    """Every convolution and linear layer by name, with one case for each call in a forward pass.

    Transposed convolutions are left out, since they have no table. ``groups`` is 0 for depthwise layers.
    """
    module, example = followable(network.module, network.example(1)), network.example(1)
    followed = _activations(module, example)
    cases: dict[str, list[LayerCase]] = {}
    handles = []
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):

            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                cases.setdefault(name, []).append(_case(layer, inputs[0], followed.get(name, "")))

            handles.append(child.register_forward_hook(hook))
    try:
        with torch.no_grad(), frozen(module):
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(found) for name, found in cases.items()}


def layer_graph(case: LayerCase, outputs: int, inputs: int, batch: int) -> bytes:
    """One layer with its bias and activation as a serialised ONNX model, on seeded weights; its batch is fixed.

    Args:
        inputs: input channels; ignored for a depthwise layer, where ``outputs`` counts.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    generator = np.random.default_rng(0)
    inputs = outputs if case.depthwise else inputs
    groups = outputs if case.depthwise else case.groups
    if case.kind == "conv":
        nodes = [
            helper.make_node(
                "Conv",
                ["x", "w", "b"],
                ["y"],
                kernel_shape=case.kernel,
                strides=case.stride,
                pads=case.padding,
                dilations=case.dilation,
                group=groups,
            )
        ]
        shape, weight = (batch, inputs, *case.places), (outputs, inputs // groups, *case.kernel)
    elif case.places:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Add", ["product", "b"], ["y"])]
        shape, weight = (batch, *case.places, inputs), (inputs, outputs)
    else:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
        shape, weight = (batch, inputs), (outputs, inputs)
    values: dict[str, Any] = {
        "w": 0.1 * generator.standard_normal(weight, dtype=np.float32),
        "b": 0.1 * generator.standard_normal(outputs, dtype=np.float32),
    }
    last = "y"
    if case.activation:
        nodes += _activation_nodes(case.activation)
        last = "z"
        if case.activation == "Relu6":
            values |= {"low": np.float32(0), "high": np.float32(6)}
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def empty_graph(batch: int) -> bytes:
    """A graph that does almost nothing, to time the overhead of calling a session."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "nothing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (batch, 1))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (batch, 1))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def _activation_nodes(name: str) -> list[Any]:
    from onnx import helper

    if name == "Relu6":
        return [helper.make_node("Clip", ["y", "low", "high"], ["z"])]
    if name == "Silu":
        return [helper.make_node("Sigmoid", ["y"], ["gate"]), helper.make_node("Mul", ["y", "gate"], ["z"])]
    return [helper.make_node(name, ["y"], ["z"])]


def _case(layer: Any, seen: Tensor, activation: str) -> LayerCase:
    if isinstance(layer, nn.Linear):
        return LayerCase("linear", tuple(seen.shape[1:-1]), activation=activation)
    kernel, dilation = tuple(layer.kernel_size), tuple(layer.dilation)
    if isinstance(layer.padding, str):
        total = [d * (k - 1) if layer.padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        padding = (*(size // 2 for size in total), *(size - size // 2 for size in total))
    else:
        padding = (*layer.padding, *layer.padding)
    depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
    places, groups = tuple(seen.shape[2:]), 0 if depthwise else layer.groups
    return LayerCase("conv", places, kernel, tuple(layer.stride), padding, dilation, groups, activation)


def _activations(module: nn.Module, example: Tensor) -> dict[str, str]:
    """The activation after each layer (and its norm), if nothing else reads the layer's output."""
    try:
        view = trace(module, example)
    except InputError:
        return {}
    modules, found = dict(view.named_modules()), {}
    for node in view.graph.nodes:
        if node.op != "call_module":
            continue
        readers, last = list(node.users), None
        while len(readers) == 1 and readers[0].op == "call_module":
            last = modules[str(readers[0].target)]
            if not isinstance(last, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                break
            readers = list(readers[0].users)
        if last is not None and (name := _ACTIVATIONS.get(type(last))):
            found[str(node.target)] = name
    return found
