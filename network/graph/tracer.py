"""A torch.fx tracer for networks whose ``forward`` depends on shapes.

torch.fx runs a network's ``forward`` on proxies. If control flow depends on a shape (``if x.shape[-1] < 64``), the tracer takes
the decision from a real example. Control flow that depends on values is refused, since it may differ for other images. Tensors
created from shapes (``torch.zeros(x.size(0), …)``) are recorded, and slices of a ``Sequential`` are traced into.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from .reach import needed_for

_CONSTRUCTORS = ("zeros", "ones", "full", "empty", "arange")
_SHAPE_METHODS = ("size", "dim", "numel", "ndimension")


class ShapeTracer(fx.Tracer):
    """Traces with an example; without one, all data-dependent control flow is refused. ``leaves`` are not traced into."""

    def __init__(self, leaves: tuple[type[nn.Module], ...], example: Tensor | None) -> None:
        super().__init__()
        self._leaves, self._example = leaves, example
        self._values: dict[fx.Node, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:
            if isinstance(mod, nn.Sequential):  # a slice has no name of its own, but its layers have
                return ""
            raise

    def to_bool(self, obj: fx.Proxy) -> bool:
        if self._example is None or not _depends_on_shapes_alone(obj.node):
            return super().to_bool(obj)
        with torch.no_grad():
            return bool(self._value(obj.node))

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with _recording_constructors():
            return super().trace(root, concrete_args)

    def _value(self, node: fx.Node) -> Any:
        """A recorded node's value for the example."""
        if node in self._values:
            return self._values[node]
        arguments = fx.node.map_arg(node.args, self._value)
        options = fx.node.map_arg(node.kwargs, self._value)
        result: Any
        if node.op == "placeholder":
            result = self._example
        elif node.op == "call_module":
            assert isinstance(self.root, nn.Module)
            result = self.root.get_submodule(str(node.target))(*arguments, **options)
        elif node.op == "call_function":
            result = node.target(*arguments, **options)  # type: ignore[operator]
        elif node.op == "call_method":
            result = getattr(arguments[0], str(node.target))(*arguments[1:], **options)
        else:
            result = self.root
            for part in str(node.target).split("."):
                result = getattr(result, part)
        self._values[node] = result
        return result


def _depends_on_shapes_alone(node: fx.Node) -> bool:
    """Whether a node depends on tensors only through their shapes."""
    needed = needed_for([node], stop=is_shape)
    return all(is_shape(each) or each.op in ("call_function", "call_method") for each in needed)


def is_shape(node: fx.Node) -> bool:
    """Whether a node reads a tensor's shape only."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")


@contextlib.contextmanager
def _recording_constructors() -> Iterator[None]:
    """Record calls of torch's tensor constructors that have proxies among their arguments; others run as usual."""

    def recording(original: Any) -> Any:
        def make(*arguments: Any, **options: Any) -> Any:
            found: list[fx.Proxy] = []
            torch.utils._pytree.tree_map_only(fx.Proxy, found.append, (arguments, options))
            if not found:
                return original(*arguments, **options)
            return found[0].tracer.create_proxy("call_function", original, arguments, options)

        return make

    with contextlib.ExitStack() as stack:
        for name in _CONSTRUCTORS:
            stack.enter_context(mock.patch.object(torch, name, recording(getattr(torch, name))))
        yield
