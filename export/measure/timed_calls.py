"""What a network spends its time on: its layers, and the operations between them, each as a case that is timed alone.

A clean file holds no operation of its own for what a layer absorbs: a BatchNorm behind it, and its activation. Those belong to
the layer's case. All others are attached to a layer: a residual sum, with the activation that follows, to the layer that feeds
it, and what else there is to the layer that makes its channels.
"""

import operator
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from ...common.errors import InputError
from ...network.channels.zero_pad import followable
from ...network.graph.execution import run_graph
from ...network.graph.leaf_modules import Add, Concatenate, Multiply, ZeroPadChannels
from ...network.graph.trace import trace
from ...network.network import Network

ACTIVATIONS: Mapping[type[nn.Module], str] = {
    nn.ReLU: "Relu",
    nn.ReLU6: "Relu6",
    nn.SiLU: "Silu",
    nn.Sigmoid: "Sigmoid",
    nn.Hardswish: "HardSwish",
    nn.Hardsigmoid: "HardSigmoid",
    nn.Tanh: "Tanh",
    nn.GELU: "Gelu",
}
LAYERS = ("conv", "linear")
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)
_ONE_INPUT = (*ACTIVATIONS, *_PASSING, _BatchNorm, _MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, ZeroPadChannels)


@dataclass(frozen=True)
class Case:
    """Everything that the time of an operation depends on besides its widths, the batch size and the machine.

    ``kind``: conv or linear, or an operation without weights of its own: join (the sum of a layer's result and another map,
    which most runtimes compute together with the layer), maxpool, averagepool, globalpool, activation, norm, add, multiply,
    gate (a factor for each channel), concat, pad (a shortcut that pads channels with zeros, a strided convolution in a clean
    file).

    ``places``: the spatial sizes of the input (convolution), or its sizes between batch and features (linear). ``kernel``,
    ``stride`` and ``dilation`` by dimension, and ``padding`` before all dimensions, then after all, are empty for a linear
    layer. A BatchNorm after the layer counts as its bias, since ONNX Runtime folds it; ``activation`` is the one that follows.
    ``groups`` is 0 for a depthwise layer; of ``pad`` it is the number of output channels for each input channel.
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
    def one_width(self) -> bool:
        """Whether the time depends on one width only: a depthwise layer's, or that of an operation without weights."""
        return self.groups == 0 or self.kind not in LAYERS

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Call:
    """One call of a case in a forward pass of a network.

    A layer's own call has its widths. Another operation has the ``width`` of its map, and the layer that it is attached to
    makes ``share`` of that.
    """

    case: Case
    width: int = 0
    share: float = 1.0


def read_calls(network: Network, ends: Collection[str] = ()) -> dict[str, tuple[Call, ...]]:
    """The calls of every convolution and linear layer by name, each followed by the operations attached to the layer.

    Transposed convolutions are left out, since they have no case, and operations whose channels no layer can be named for. Of
    a network that cannot be traced only the layers are read.

    Args:
        ends: the layers that end removable branches. A sum belongs to them, since it goes with the branch; what follows the
            sum belongs to another layer.
    """
    module, example = followable(network.module, network.example(1)), network.example(1)
    try:
        view = trace(module, example)
    except InputError:
        return _without_graph(module, example)
    with torch.no_grad():
        values = run_graph(view, example, [node for node in view.graph.nodes if node.op != "output"])
    reader = _Reader(view, values, frozenset(ends))
    calls: dict[str, list[Call]] = {}
    for node in view.graph.nodes:
        for layer, call in reader.calls(node):
            calls.setdefault(layer, []).append(call)
    return {name: tuple(found) for name, found in calls.items()}


def _without_graph(module: nn.Module, example: Tensor) -> dict[str, tuple[Call, ...]]:
    calls: dict[str, list[Call]] = {}
    handles = []
    for name, child in module.named_modules():
        if _is_layer(child):

            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                calls.setdefault(name, []).append(Call(layer_case(layer, inputs[0])))

            handles.append(child.register_forward_hook(hook))
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(found) for name, found in calls.items()}


class _Reader:
    """Reads the cases of a traced network's nodes; ``values`` holds what they give for one image."""

    def __init__(self, view: fx.GraphModule, values: Mapping[fx.Node, Any], ends: frozenset[str]) -> None:
        self.modules, self.values, self.ends = dict(view.named_modules()), values, ends
        self._makers: dict[fx.Node, tuple[tuple[str, ...], ...]] = {}
        self._absorbed: dict[fx.Node, fx.Node] = {}
        layers = [node for node in view.graph.nodes if _is_layer(self._module(node))]
        layers.sort(key=lambda node: str(node.target) not in ends)  # a sum of two layers goes with the one that may go
        self._followed = {node: self._follow(node) for node in layers}

    def calls(self, node: fx.Node) -> list[tuple[str, Call]]:
        """The calls of a node with the layers that they belong to."""
        if node in self._followed:
            activation, joined = self._followed[node]
            seen, value, name = self.values[node.all_input_nodes[0]], self.values[node], str(node.target)
            own = Call(layer_case(self._module(node), seen, "" if joined else activation))
            if not joined or value.dim() != 4:
                return [(name, own)]
            return [
                (name, own),
                (name, Call(Case("join", tuple(value.shape[2:]), activation=activation), value.shape[1])),
            ]
        if node in self._absorbed or node.op != "call_module":
            return []
        case = self._case(node)
        if case is None:
            return []
        parts = [self._keeper(part) for part in self.makers(node)]
        width = self.values[node.all_input_nodes[0] if case.kind == "pad" else node].shape[1]
        return [(layer, Call(case, width, share)) for layer, share in zip(parts, self._shares(node), strict=True)]

    def makers(self, node: fx.Node) -> tuple[tuple[str, ...], ...]:
        """The layers that make a value's channels: one tuple for each part that was put behind another, of the layers whose
        results were added up. Empty if it cannot be said.
        """
        if node not in self._makers:
            self._makers[node] = self._find_makers(node)
        return self._makers[node]

    def _find_makers(self, node: fx.Node) -> tuple[tuple[str, ...], ...]:
        module, sources = self._module(node), node.all_input_nodes
        if isinstance(module, _ConvNd | nn.Linear):
            return ((str(node.target),),)
        if isinstance(module, _ONE_INPUT) or self._thinned(node) is not node:
            return self.makers(sources[0])
        if isinstance(module, Concatenate):
            parts = [self.makers(source) for source in sources]
            return tuple(part for found in parts for part in found) if all(parts) else ()
        if isinstance(module, Multiply) and sources:
            return self.makers(max(sources, key=lambda source: self.values[source].numel()))
        if isinstance(module, Add):
            found = [self.makers(source) for source in sources]
            if all(found) and len({len(parts) for parts in found}) == 1:
                return tuple(tuple(dict.fromkeys(sum(same, ()))) for same in zip(*found, strict=True))
            return next((parts for parts in found if parts), ())
        return ()

    def _keeper(self, part: tuple[str, ...]) -> str:
        return next((layer for layer in part if layer not in self.ends), part[0])

    def _thinned(self, node: fx.Node) -> fx.Node:
        """What a node takes every so many positions of, all channels; the node itself if it does anything else."""
        sources = node.all_input_nodes
        if node.op != "call_function" or node.target is not operator.getitem or len(sources) != 1:
            return node
        seen, taken = self.values[sources[0]], self.values[node]
        alike = isinstance(taken, Tensor) and isinstance(seen, Tensor) and taken.shape[:2] == seen.shape[:2]
        return sources[0] if alike and taken.dim() == seen.dim() == 4 else node

    def _shares(self, node: fx.Node) -> list[float]:
        """The share of each part in a map of several, by the widths of the layers that make them."""
        widths = []
        for part in self.makers(node):
            layer: Any = self.modules[part[0]]
            widths.append(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
        total = sum(widths)
        return [size / total for size in widths]

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _follow(self, node: fx.Node) -> tuple[str, bool]:
        """What a layer absorbs: its norm, the sum that it feeds, and the activation behind; (activation, whether joined)."""
        last, joined, activation = node, False, ""
        while len(last.users) == 1:
            reader = next(iter(last.users))
            module = self._module(reader)
            if reader in self._absorbed:
                break
            if isinstance(module, _BatchNorm) and not joined:
                pass
            elif isinstance(module, Add) and not joined and self._same_shapes(reader):
                joined = True
            elif _activation(module):
                activation = _activation(module)
            elif not isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d):
                break
            self._absorbed[reader] = node
            last = reader
            if activation:
                break
        return activation, joined

    def _same_shapes(self, node: fx.Node) -> bool:
        sources = node.all_input_nodes
        return len(sources) == 2 and self.values[sources[0]].shape == self.values[sources[1]].shape

    def _case(self, node: fx.Node) -> Case | None:
        """The case of an operation without weights; None for what takes no time, or cannot be timed alone."""
        module, sources, value = self._module(node), node.all_input_nodes, self.values[node]
        if not isinstance(value, Tensor) or value.dim() != 4 or not sources or not self.makers(node):
            return None
        seen = self.values[sources[0]]
        places = tuple(seen.shape[2:])
        if isinstance(module, _MaxPoolNd | _AvgPoolNd):
            kind = "maxpool" if isinstance(module, _MaxPoolNd) else "averagepool"
            kernel, stride, padding = (
                _pair(size) for size in (module.kernel_size, module.stride or module.kernel_size, module.padding)
            )
            return Case(kind, places, kernel, stride, (*padding, *padding))
        if isinstance(module, _AdaptiveAvgPoolNd):
            return Case("globalpool", places) if value.shape[2:] == (1, 1) else None
        if name := _activation(module):
            return Case("activation", places, activation=name)
        if isinstance(module, _BatchNorm):
            return Case("norm", places)
        if isinstance(module, Add) and self._same_shapes(node):
            return Case("add", places)
        if isinstance(module, Multiply) and len(sources) == 2:
            return Case("multiply" if self._same_shapes(node) else "gate", tuple(value.shape[2:]))
        if isinstance(module, Concatenate) and value.shape[1] > seen.shape[1]:
            return Case("concat", places)
        if isinstance(module, ZeroPadChannels):
            places = tuple(self.values[self._thinned(sources[0])].shape[2:])
            step = tuple(-(-before // after) for before, after in zip(places, value.shape[2:], strict=True))
            return Case("pad", places, stride=step, groups=max(1, value.shape[1] // seen.shape[1]))
        return None


def layer_case(layer: Any, seen: Tensor, activation: str = "") -> Case:
    """The case of a convolution or a linear layer that reads ``seen``."""
    if isinstance(layer, nn.Linear):
        return Case("linear", tuple(seen.shape[1:-1]), activation=activation)
    kernel, dilation = tuple(layer.kernel_size), tuple(layer.dilation)
    if isinstance(layer.padding, str):
        total = [d * (k - 1) if layer.padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        padding = (*(size // 2 for size in total), *(size - size // 2 for size in total))
    else:
        padding = (*layer.padding, *layer.padding)
    depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
    places, groups = tuple(seen.shape[2:]), 0 if depthwise else layer.groups
    return Case("conv", places, kernel, tuple(layer.stride), padding, dilation, groups, activation)


def _is_layer(module: nn.Module | None) -> bool:
    return isinstance(module, _ConvNd | nn.Linear) and not isinstance(module, _ConvTransposeNd)


def _activation(module: nn.Module | None) -> str:
    return "" if module is None else ACTIVATIONS.get(type(module), "")


def _pair(size: Any) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, tuple | list) else (int(size), int(size))
