"""A torch.fx tracer for networks whose ``forward`` depends on shapes.

torch.fx runs a network's ``forward`` on proxies. With an example, the tracer knows every value's shape: control flow that
depends on a shape (``if x.shape[-1] < 64``), numbers that Python computes from one (``math.ceil(x.shape[2] / 2)``), and
iteration over what an operation returns (``for part in x.chunk(2, 1)``) follow the example. The example is run in two batch
sizes, so that what depends on the number of images is told apart and stays in the graph. Control flow that depends on values
is refused, since it may differ for other images, unless ``guards`` is asked for. Tensors created from shapes
(``torch.zeros(x.size(0), …)``) are recorded, and slices of a ``Sequential`` are traced into.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .execution import run_node
from .reach import needed_for
from .shapes import SHAPE_METHODS, depends_on_shapes_alone

_CONSTRUCTORS = ("zeros", "ones", "full", "empty", "arange")
_FILLED_LIKE = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")
_FACTS = ("dtype", "is_sparse", "is_quantized", "layout")
"""Attributes that are the same for every image."""
BATCHES = (2, 3)
"""The numbers of images that the example is run with."""


class ShapeTracer(fx.Tracer):
    """Traces with an example; without one, all data-dependent control flow is refused.

    Args:
        leaves: kinds of modules that are not traced into. Of torch's own layers, subclasses are traced into if they have a
            ``forward`` of their own, since their attributes may say something else than what they compute.
        example: images, of which the first is used.
        fixed: sizes that do not depend on the number of images become numbers in the graph.
        guards: where control flow depends on values, the branch that the example takes is followed and described in
            ``self.guards``; if it takes different ones, tracing fails.
    """

    def __init__(
        self, leaves: tuple[type[nn.Module], ...], example: Tensor | None, fixed: bool = False, guards: bool = False
    ) -> None:
        super().__init__()
        self._leaves, self._fixed, self._guarded = leaves, fixed and example is not None, guards
        self.proxy_buffer_attributes = self._fixed
        self._batches: tuple[Tensor, ...] = ()
        if example is not None:
            self._batches = tuple(_batch(example[:1], count) for count in BATCHES)
        self._values: dict[fx.Node, tuple[Any, ...]] = {}
        self.guards: list[str] = []
        self.depends = False
        """Whether the trace holds for images of the example's shape alone, in another way than by sizes in the graph."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if not runs_torchs_forward(m):
            return False
        return isinstance(m, self._leaves) or super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:
            if isinstance(mod, nn.Sequential):  # a slice has no name of its own, but its layers have
                return ""
            raise

    def to_bool(self, obj: fx.Proxy) -> bool:
        if self._batches and self._is_known(obj.node):
            return bool(self.known(obj))
        if not self._batches or not self._guarded:
            return super().to_bool(obj)
        taken = {bool(value) for value in self.values(obj.node)}
        if len(taken) > 1:
            raise fx.proxy.TraceError(f"images decide differently at {_place()}")
        decision = taken.pop()
        self.guards.append(f"{_place()} is {decision}")
        return decision

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([obj[index] for index in range(self.length(obj))])  # type: ignore[index]

    def length(self, obj: fx.Proxy) -> int:
        """How many values an operation returns, or the size of a tensor's first dimension.

        Raises:
            TraceError: it depends on the number of images, or there is no example.
        """
        if self._batches:
            counts = {len(value) for value in self.values(obj.node)}
            self.depends = True
            if len(counts) == 1:
                return counts.pop()
        raise fx.proxy.TraceError(f"forward iterates over images at {_place()}")

    def known(self, obj: fx.Proxy) -> Any:
        """A number that Python needs now.

        Raises:
            TraceError: it depends on the images or on their number.
        """
        if self._batches and self._is_known(obj.node):
            first, second = self.values(obj.node)
            if first == second:
                return first
        raise fx.proxy.TraceError(f"a number that depends on the images is needed at {_place()}")

    def _is_known(self, node: fx.Node) -> bool:
        """Whether a node depends on shapes, or on parameters and buffers, alone."""
        return depends_on_shapes_alone(node) or all(each.op != "placeholder" for each in needed_for([node]))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self) if self._batches else super().proxy(node)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if self._fixed and kind == "call_method" and isinstance(args[0], _Known):
            if target in SHAPE_METHODS:
                return self._size(args[0], target, *args[1:], **kwargs)
            if target in _FILLED_LIKE and not _proxies((args[1:], kwargs)):
                return getattr(self.values(args[0].node)[0], target)(*args[1:], **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **options)

    def _size(self, proxy: "_Known", target: str, dim: int | None = None) -> Any:
        shape = proxy.shape
        if target == "size":
            return shape if dim is None else shape[dim]
        return math.prod(shape) if target == "numel" else len(shape)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_recording_constructors())
            if self._fixed:
                stack.enter_context(_functions_opened())
            return super().trace(root, concrete_args)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The images alone are an input: what else ``forward`` takes has the value that it has when it is not given."""
        names = [name for name in inspect.signature(root_fn).parameters if name != "self"]
        return root_fn, [self.root, self.create_proxy("placeholder", names[0] if names else "x", (), {})]

    def values(self, node: fx.Node) -> tuple[Any, ...]:
        """A recorded node's value for each batch."""
        if node not in self._values:
            needed = needed_for([node], stop=self._values.__contains__)
            for each in [each for each in self.graph.nodes if each in needed and each not in self._values]:
                self._values[each] = tuple(self._value(each, batch) for batch in range(len(self._batches)))
        return self._values[node]

    @torch.no_grad()
    def _value(self, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            return self._batches[batch].clone()
        with fx._symbolic_trace._maybe_revert_all_patches():  # while tracing, modules record calls instead of running
            return run_node(self.root, node, lambda read: self._values[read][batch])  # type: ignore[arg-type]


class _Known(fx.Proxy):
    """A proxy whose numbers are those of the example where Python needs them."""

    tracer: ShapeTracer

    def __getattr__(self, name: str) -> Any:
        if name in _FACTS:
            return getattr(self.tracer.values(self.node)[0], name)
        if self.tracer._fixed and name in ("shape", "ndim"):
            first, second = self.tracer.values(self.node)
            if isinstance(first, Tensor):
                return first.dim() if name == "ndim" else self._shape(first.shape, second.shape)
        return super().__getattr__(name)

    def _shape(self, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[Any, ...]:
        """Numbers, but for the dimensions that depend on the number of images."""
        own = [dim for dim, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
        read: Any = self.tracer.create_proxy("call_function", getattr, (self, "shape"), {}) if own else None
        return _Shape(read[dim] if dim in own else size for dim, size in enumerate(first))

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __int__(self) -> int:
        return int(self.tracer.known(self))

    def __index__(self) -> int:
        return int(self.tracer.known(self))

    def __float__(self) -> float:
        return float(self.tracer.known(self))

    def __ceil__(self) -> int:
        value: float = self.tracer.known(self)
        return math.ceil(value)

    def __floor__(self) -> int:
        value: float = self.tracer.known(self)
        return math.floor(value)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.tracer.known(self), digits)


class _Shape(tuple[Any, ...]):
    """A shape in which sizes may be proxies."""

    __slots__ = ()

    def numel(self) -> Any:
        return math.prod(self)


def runs_torchs_forward(module: nn.Module) -> bool:
    """Whether a layer computes what torch's layer of its kind computes; True for modules that are no layer of torch's.

    A subclass with a ``forward`` of its own may pad, normalise its weights or ignore them. So may a layer whose parameters are
    made from others by a parametrisation or a hook.
    """
    if not isinstance(module, (_ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm, nn.GroupNorm)):
        return True
    kind = type(module)
    names = ("forward", "_conv_forward") if isinstance(module, _ConvNd) else ("forward",)
    own = next(base for base in kind.__mro__ if base.__module__.startswith("torch.nn.modules"))
    return all(getattr(kind, name) is getattr(own, name) for name in names) and "forward" not in vars(module)


def _batch(image: Tensor, count: int) -> Tensor:
    """``count`` images: the example's, and noise like it."""
    generator = torch.Generator().manual_seed(count)
    noise = torch.randn(count - 1, *image.shape[1:], generator=generator).to(image)
    return torch.cat([image, noise])


def _proxies(values: Any) -> list[fx.Proxy]:
    found: list[fx.Proxy] = []
    torch.utils._pytree.tree_map_only(fx.Proxy, found.append, values)
    return found


def _place() -> str:
    """The line of the user's code that is being traced."""
    for frame in inspect.stack()[1:]:
        module = frame.frame.f_globals.get("__name__", "")
        if not module.startswith(("torch.", "secateur.", "unittest.", "contextlib")) and frame.function != "__bool__":
            line = (frame.code_context or [""])[0].strip()
            return f"line {frame.lineno} of {frame.filename.rpartition('/')[2]} ({line})"
    return "an unknown place"


@contextlib.contextmanager
def _recording_constructors() -> Iterator[None]:
    """Record calls of torch's tensor constructors that have proxies among their arguments; others run as usual."""

    def recording(original: Any) -> Any:
        def make(*arguments: Any, **options: Any) -> Any:
            found = _proxies((arguments, options))
            if not found:
                return original(*arguments, **options)
            return found[0].tracer.create_proxy("call_function", original, arguments, options)

        return make

    with contextlib.ExitStack() as stack:
        for name in _CONSTRUCTORS:
            stack.enter_context(mock.patch.object(torch, name, recording(getattr(torch, name))))
        yield


@contextlib.contextmanager
def _functions_opened() -> Iterator[None]:
    """Trace into the functions that libraries declare as leaves by ``torch.fx.wrap``: with shapes known, they can be."""
    wrapped = fx._symbolic_trace._wrapped_fns_to_patch
    with mock.patch.dict(wrapped, clear=True):
        yield
