"""The modules that are equivalent to functional calls: ``F.relu`` to ReLU, ``a + b`` to Add."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .leaf_modules import Add, Concatenate, Multiply, ZeroPadChannels

_PLAIN_ACTIVATIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    F.relu_: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    F.relu6: nn.ReLU6,
    F.silu: nn.SiLU,
    F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid,
    F.mish: nn.Mish,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    "tanh": nn.Tanh,
}
_POOLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    F.avg_pool2d: (nn.AvgPool2d, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size",)),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope",)),
    F.elu: (nn.ELU, ("alpha",)),
    F.gelu: (nn.GELU, ("approximate",)),
}
_SUMS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS: tuple[Any, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


def as_module(node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]] | None:
    """The module equivalent to a functional call, with its tensor arguments; None to leave the call unchanged."""
    if node.op not in ("call_function", "call_method"):
        return None
    target, arguments = node.target, node.args
    if target in _PLAIN_ACTIVATIONS:
        return _PLAIN_ACTIVATIONS[target](), (arguments[0],)
    if target in _POOLS:
        return _pool(node, *_POOLS[target])
    if target in (*_SUMS, *_PRODUCTS):
        if len(arguments) == 2 and all(isinstance(value, fx.Node) for value in arguments) and not node.kwargs:
            kind = Multiply if target in _PRODUCTS else Add
            return kind(), arguments
        return None
    if target in (torch.cat, torch.concat):
        tensors = arguments[0] if arguments else node.kwargs["tensors"]
        dim = arguments[1] if len(arguments) > 1 else node.kwargs.get("dim", 0)
        if isinstance(tensors, list | tuple) and isinstance(dim, int):
            return Concatenate(dim), tuple(tensors)
        return None
    return _channel_padding(node)


def _pool(node: fx.Node, kind: type[nn.Module], names: tuple[str, ...]) -> tuple[nn.Module, tuple[Any, ...]] | None:
    values = dict(zip(names, node.args[1:], strict=False))
    values.update({name: value for name, value in node.kwargs.items() if name in names})
    unknown = set(node.kwargs) - set(names) - {"inplace", "return_indices"}
    if unknown or node.kwargs.get("return_indices") or any(isinstance(value, fx.Node) for value in values.values()):
        return None
    return kind(**{name: value for name, value in values.items() if value is not None}), (node.args[0],)


def _channel_padding(node: fx.Node) -> tuple[nn.Module, tuple[Any, ...]] | None:
    if node.target not in (F.pad, torch.nn.functional.pad):
        return None
    widths = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    if isinstance(widths, list | tuple) and all(isinstance(width, int) and width == 0 for width in widths):
        return nn.Identity(), (node.args[0],)
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value", 0)
    if not isinstance(widths, list | tuple) or len(widths) != 6 or mode != "constant" or value not in (0, 0.0, None):
        return None
    whole = [width for width in widths if isinstance(width, int)]
    if len(whole) != 6 or any(whole[:4]) or min(whole[4:]) < 0:
        return None
    return ZeroPadChannels(whole[4], whole[5]), (node.args[0],)
