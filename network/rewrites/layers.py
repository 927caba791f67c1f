"""Layers called as functions, or with weights that are computed on every call, become torch's own layers.

``F.conv2d(x, self.weight)``, a standardised weight, ``x @ self.weight`` and ``torch.einsum("bchw,oc->bohw", x, self.weight)``
are convolutions and linear layers with a weight that depends on no image, which is computed once.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..graph.execution import run_node
from ..graph.trace import free_name
from ..provenance.operations import operation_name, option
from .edits import call, constant_nodes, constant_value, erase_unread, is_trainable, put_layer, replace, sources_of

_CONVOLUTIONS: dict[str, type[Any]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_NORMS: dict[int, type[Any]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class _Layers:
    """Replaces calls in one graph; ``values`` holds every node's value for an example."""

    def __init__(self, view: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
        self.view, self.values = view, values
        self.constants = constant_nodes(view)
        self.notes: list[str] = []

    def run(self) -> list[str]:
        rules: dict[str, Callable[[fx.Node], bool]] = {
            **dict.fromkeys(_CONVOLUTIONS, self._convolution),
            "linear": self._linear,
            **dict.fromkeys(("matmul", "mm"), self._matmul),
            "addmm": self._addmm,
            "einsum": self._einsum,
            "batch_norm": self._batch_norm,
            "layer_norm": self._layer_norm,
            "group_norm": self._group_norm,
            "prelu": self._prelu,
            "dropout": self._dropout,
            "glu": self._glu,
        }
        for node in list(self.view.graph.nodes):
            if node._erased or not node.users:
                continue
            if node.op == "call_module" and type(self.view.get_submodule(str(node.target))) is nn.GLU:
                self._glu(node)
                continue
            rule = rules.get(operation_name(node)) if node.op in ("call_function", "call_method") else None
            if rule is not None and node not in self.constants:
                self._evaluate(node.all_input_nodes)
                rule(node)
        return self.notes

    @torch.no_grad()
    def _evaluate(self, nodes: Iterable[fx.Node]) -> None:
        """Give values to nodes that a rule put in."""
        for node in nodes:
            if node not in self.values:
                self._evaluate(node.all_input_nodes)
                self.values[node] = run_node(self.view, node, self.values.__getitem__)

    def _constant(self, node: Any) -> bool:
        return node is None or node in self.constants

    def _value(self, node: Any) -> Tensor | None:
        return None if node is None else constant_value(self.view, node)

    def _put(self, node: fx.Node, layer: nn.Module, tensors: dict[str, Any], x: Any, kind: str) -> None:
        """Replace ``node`` by a layer whose tensors are the values of constant nodes."""
        given = {name: each for name, each in tensors.items() if isinstance(each, fx.Node)}
        with torch.no_grad():
            for name, each in given.items():
                value = self._value(each)
                assert value is not None
                current = getattr(layer, name)
                setattr(
                    layer, name, nn.Parameter(value.clone()) if isinstance(current, nn.Parameter) else value.clone()
                )
        made_from = [source for each in given.values() for source in sources_of(each)]
        plain = all(each.op == "get_attr" for each in given.values())
        trained = is_trainable(self.view, given["weight"]) if "weight" in given else True
        own = dict(self.view.named_modules()).get(made_from[0].rpartition(".")[0]) if made_from else None
        told = f"{made_from[0].rpartition('.')[0] or made_from[0]}" if made_from else node.name
        layer.training = False
        name = put_layer(self.view, node, layer, made_from, kind)
        new = call(self.view, node, name, (x,))
        replace(self.view, node, new)
        where = name if name == told else f"{told} as {name}"
        what = "" if plain else ", its weight computed once"
        what += "" if trained else ", which is fixed"
        origin = f" ({type(own).__name__})" if own is not None and type(own).__module__.split(".")[0] != "torch" else ""
        self.notes.append(f"{where}{origin}: a {type(layer).__name__}{what}")

    def _convolution(self, node: fx.Node) -> bool:
        x, weight, bias = (option(node, place, name) for place, name in enumerate(("input", "weight", "bias")))
        given = [
            option(node, 3 + place, name, default=default) for place, (name, default) in enumerate(_CONVOLUTION_OPTIONS)
        ]
        if not (isinstance(weight, fx.Node) and self._constant(weight) and self._constant(bias)) or x in self.constants:
            return False
        if any(isinstance(each, fx.Node) for each in given):
            return False
        stride, padding, dilation, groups = given
        shape = self.values[weight].shape
        kind = _CONVOLUTIONS[operation_name(node)]
        count = len(shape) - 2
        stride, dilation = (
            (each * count if len(each) == 1 else tuple(each)) if isinstance(each, list | tuple) else each
            for each in (stride, dilation)
        )
        if isinstance(padding, list | tuple):
            padding = tuple(padding) * count if len(padding) == 1 else tuple(padding)
        with torch.device("meta"):
            layer = kind(
                shape[1] * groups, shape[0], tuple(shape[2:]), stride, padding, dilation, groups, bias is not None
            )
        self._put(node, layer, {"weight": weight, "bias": bias}, x, "conv")
        return True

    def _linear(self, node: fx.Node) -> bool:
        x, weight, bias = (option(node, place, name) for place, name in enumerate(("input", "weight", "bias")))
        if not (isinstance(weight, fx.Node) and self._constant(weight) and self._constant(bias)):
            return False
        if self.values[weight].dim() != 2:
            return False
        self._put_linear(node, x, weight, bias)
        return True

    def _put_linear(self, node: fx.Node, x: Any, weight: fx.Node, bias: Any) -> None:
        outputs, inputs = constant_value(self.view, weight).shape
        with torch.device("meta"):
            layer = nn.Linear(inputs, outputs, bias is not None)
        self._put(node, layer, {"weight": weight, "bias": bias}, x, "linear")

    def _transposed(self, node: fx.Node, weight: fx.Node) -> fx.Node:
        new = call(self.view, node, torch.t, (weight,))
        self.constants.add(new)
        return new

    def _matmul(self, node: fx.Node) -> bool:
        first, second = option(node, 0, "input"), option(node, 1, "other", "mat2")
        if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
            return False
        if second in self.constants and self.values[second].dim() == 2 and self.values[first].dim() >= 2:
            self._put_linear(node, first, self._transposed(node, second), None)
            return True
        if first in self.constants and self.values[first].dim() == 2 and self.values[second].dim() >= 3:
            turned = call(self.view, node, torch.transpose, (second, -1, -2))
            back = call(self.view, node, torch.transpose, (turned, -1, -2))
            middle = call(self.view, back, F.linear, (turned, first))
            back.args = (middle, -1, -2)
            replace(self.view, node, back)
            self.values[middle] = None
            self._put_linear(middle, turned, first, None)
            return True
        return False

    def _addmm(self, node: fx.Node) -> bool:
        bias, x, weight = (option(node, place, name) for place, name in enumerate(("input", "mat1", "mat2")))
        if bias not in self.constants or weight not in self.constants or x in self.constants or node.kwargs:
            return False
        if self.values[bias].dim() != 1:
            return False
        self._put_linear(node, x, self._transposed(node, weight), bias)
        return True

    def _einsum(self, node: fx.Node) -> bool:
        """A sum over one letter of a constant matrix is a linear layer; over the channels of a map, a 1x1 convolution."""
        equation = node.args[0]
        given: Any = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else node.args[1:]
        if not isinstance(equation, str) or "->" not in equation or len(given) != 2:
            return False
        constant = [place for place, each in enumerate(given) if each in self.constants]
        if len(constant) != 1:
            return False
        weight, x = given[constant[0]], given[1 - constant[0]]
        terms, result = equation.replace(" ", "").split("->")
        letters = terms.split(",")
        own, read = letters[constant[0]], letters[1 - constant[0]]
        if "..." in read:
            spare = "ZYXWVUTS"[: self.values[x].dim() - len(read) + 3]
            read, result = read.replace("...", spare), result.replace("...", spare)
        summed = [letter for letter in own if letter in read and letter not in result]
        made = [letter for letter in own if letter not in read and letter in result]
        if len(own) != 2 or len(summed) != 1 or len(made) != 1 or len(set(read)) != len(read):
            return False
        matrix = weight if own == made[0] + summed[0] else self._transposed(node, weight)
        if self.values[x].dim() == 4 and read[1] == summed[0] and result == read.replace(summed[0], made[0]):
            outputs, inputs = _turned(self.values[weight].shape, matrix is weight)
            kernel = call(self.view, node, torch.reshape, (matrix, (outputs, inputs, 1, 1)))
            self.constants.add(kernel)
            with torch.device("meta"):
                layer = nn.Conv2d(inputs, outputs, 1, bias=False)
            self._put(node, layer, {"weight": kernel}, x, "conv")
            return True
        order = [letter for letter in read if letter != summed[0]]
        turned = call(self.view, node, torch.permute, (x, [read.index(letter) for letter in (*order, summed[0])]))
        middle = call(self.view, node, F.linear, (turned, matrix))
        now = [*order, made[0]]
        back = call(self.view, node, torch.permute, (middle, [now.index(letter) for letter in result]))
        replace(self.view, node, back)
        self._put_linear(middle, turned, matrix, None)
        return True

    def _batch_norm(self, node: fx.Node) -> bool:
        names = ("input", "running_mean", "running_var", "weight", "bias")
        x, mean, variance, weight, bias = (option(node, place, name) for place, name in enumerate(names))
        training, momentum, eps = (
            option(node, 5, "training", default=False),
            option(node, 6, "momentum", default=0.1),
            option(node, 7, "eps", default=1e-5),
        )
        if training or not all(isinstance(each, fx.Node) and self._constant(each) for each in (mean, variance)):
            return False
        if (
            not (self._constant(weight) and self._constant(bias))
            or (weight is None) != (bias is None)
            or x in self.constants
        ):
            return False
        layer = _NORMS[self.values[x].dim()](len(self.values[mean]), eps, momentum, weight is not None)
        tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
        self._put(node, layer, tensors, x, "norm")
        return True

    def _layer_norm(self, node: fx.Node) -> bool:
        x, shape = option(node, 0, "input"), option(node, 1, "normalized_shape")
        weight, bias = option(node, 2, "weight"), option(node, 3, "bias")
        if not (self._constant(weight) and self._constant(bias)) or (weight is None and bias is not None):
            return False
        if any(isinstance(each, fx.Node) for each in shape):
            return False
        layer = nn.LayerNorm(
            tuple(shape), option(node, 4, "eps", default=1e-5), weight is not None, bias=bias is not None
        )
        self._put(node, layer, {"weight": weight, "bias": bias}, x, "norm")
        return True

    def _group_norm(self, node: fx.Node) -> bool:
        x, groups = option(node, 0, "input"), option(node, 1, "num_groups")
        weight, bias = option(node, 2, "weight"), option(node, 3, "bias")
        if not (self._constant(weight) and self._constant(bias)) or (weight is None) != (bias is None):
            return False
        channels = self.values[x].shape[1]
        layer = nn.GroupNorm(groups, channels, option(node, 4, "eps", default=1e-5), weight is not None)
        self._put(node, layer, {"weight": weight, "bias": bias}, x, "norm")
        return True

    def _prelu(self, node: fx.Node) -> bool:
        x, weight = option(node, 0, "input"), option(node, 1, "weight")
        if weight not in self.constants:
            return False
        self._put(node, nn.PReLU(self.values[weight].numel()), {"weight": weight}, x, "prelu")
        return True

    def _dropout(self, node: fx.Node) -> bool:
        """Dropout that was off while tracing, in evaluation mode, is on again in training."""
        if node.op != "call_function" or option(node, 2, "training", "train", default=True) is not False:
            return False
        place = put_layer(self.view, node, nn.Dropout(option(node, 1, "p", default=0.5)).eval(), (), "dropout")
        replace(self.view, node, call(self.view, node, place, (option(node, 0, "input"),)))
        return True

    def _glu(self, node: fx.Node) -> bool:
        """A gated linear unit: half of the channels times the sigmoid of the others."""
        x = option(node, 0, "input")
        dim = option(node, 1, "dim", default=-1)
        if node.op == "call_module":
            dim = self.view.get_submodule(str(node.target)).dim
        parts = call(self.view, node, torch.chunk, (x, 2, dim))
        halves = [call(self.view, node, operator.getitem, (parts, place)) for place in range(2)]
        gate = call(self.view, node, torch.sigmoid, (halves[1],))
        replace(self.view, node, call(self.view, node, torch.mul, (halves[0], gate)))
        self.notes.append(f"{node.name}: a gated linear unit as its two halves")
        return True


_CONVOLUTION_OPTIONS = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))


def _turned(shape: torch.Size, kept: bool) -> tuple[int, int]:
    first, second = shape
    return (first, second) if kept else (second, first)


def layers_from_functions(view: fx.GraphModule, values: dict[fx.Node, Any]) -> list[str]:
    """Replace functional layers by modules; a note for each that changes what is saved."""
    return _Layers(view, values).run()


def fold_constants(view: fx.GraphModule) -> list[str]:
    """Compute once what depends on parameters alone, such as a table of relative positions looked up on every call."""
    constants = constant_nodes(view)
    notes = []
    for node in [each for each in view.graph.nodes if each in constants and each.op != "get_attr"]:
        if node._erased or all(user in constants for user in node.users):
            continue
        value = constant_value(view, node)
        if not isinstance(value, Tensor):
            continue
        made_from = sources_of(node)
        owner = made_from[0].rpartition(".")[0]
        name = free_name(view, f"{owner}.{node.name}" if owner else node.name)
        holder = view.get_submodule(owner)
        if is_trainable(view, node) and value.is_floating_point():
            holder.register_parameter(name.rpartition(".")[2], nn.Parameter(value.clone()))
        else:
            holder.register_buffer(name.rpartition(".")[2], value.clone())
        with view.graph.inserting_before(node):
            new = view.graph.get_attr(name)
        node.replace_all_uses_with(new)
        erase_unread(view, node)
        notes.append(f"{name}: computed once from {', '.join(dict.fromkeys(made_from))}")
    return notes
