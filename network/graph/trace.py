"""Trace a network with torch.fx into a graph in which functional calls are modules, each called once.

Hooks, attribution libraries and torch-pruning work on modules. A network that calls ``F.relu``, adds in place, or calls one
``ReLU`` module in several places hides its structure from them; the traced view shows it.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...common.errors import InputError, describe
from .execution import is_in_place
from .functional_calls import as_module
from .leaf_modules import Add, ChannelMean, Concatenate, Multiply, Normalize, SelectChannels, ZeroPadChannels
from .stand_ins import Constant, Subsample
from .tracer import ShapeTracer

ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
    nn.LeakyReLU,
    nn.ELU,
    nn.PReLU,
    nn.Softplus,
    nn.Mish,
)
PER_CHANNEL = (*ACTIVATIONS, _BatchNorm, nn.Dropout, nn.Dropout2d, nn.Identity)

BLOCKS = "secateur_blocks"
"""The ``meta`` key for the module that ends each block: a graph that is traced again has no blocks of its own."""
_LEAVES = (
    Add,
    Multiply,
    Concatenate,
    ZeroPadChannels,
    SelectChannels,
    Normalize,
    ChannelMean,
    Subsample,
    Constant,
    _ConvNd,
    nn.Linear,
)


def trace(module: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """A copy of the network as a graph of modules, with the same parameter names; the original is unchanged.

    Activations, sums, products, concatenations, pools and channel padding become modules, out of place; a parameter-free module
    that is called several times becomes several modules. Control flow that depends on shapes is traced as for ``example``,
    ``[n, C, H, W]``; without an example it cannot be traced.

    Raises:
        InputError: the network's ``forward`` cannot be traced: its control flow depends on values.
    """
    return _traced(module, ShapeTracer(_LEAVES, example))


def trace_for_rewrites(module: nn.Module, example: Tensor) -> tuple[fx.GraphModule, tuple[str, ...], bool]:
    """A traced copy with all sizes as numbers but those of the batch, its guards, and whether the trace depends on the example.

    A guard describes a branch that was taken where ``forward`` decides on values.

    Raises:
        InputError: the network's ``forward`` cannot be traced.
    """
    tracer = ShapeTracer(_LEAVES, example, fixed=True, guards=True)
    traced = _traced(module, tracer)
    return traced, tuple(dict.fromkeys(tracer.guards)), tracer.depends


def _traced(module: nn.Module, tracer: ShapeTracer) -> fx.GraphModule:
    root = copy.deepcopy(module).eval()
    try:
        graph = tracer.trace(root)
    except Exception as error:  # tracing runs the user's forward, which may raise anything
        raise InputError(
            f"{type(module).__name__}.forward cannot be traced by torch.fx ({describe(error)}). Remove control "
            "flow that depends on values, or use what needs no tracing: "
            "--rank-by magnitude --allocation uniform --repair bn."
        ) from error
    traced = fx.GraphModule(root, graph)
    _remove_in_place_operations(traced)
    called: set[str] = set()
    for node in list(traced.graph.nodes):
        replacement = as_module(node)
        if replacement is not None:
            _replace(traced, node, *replacement)
        elif node.op == "call_module":
            _give_own_module(traced, node, called)
    for child in traced.modules():
        if getattr(child, "inplace", False) is True:
            child.inplace = False  # type: ignore[assignment]
    traced.graph.lint()
    traced.recompile()
    traced.train(module.training)
    traced.meta[BLOCKS] = _block_ends(traced, module)
    return traced


def _block_ends(traced: fx.GraphModule, module: nn.Module) -> dict[str, str]:
    """For each block the module whose call ends it; blocks recorded by an earlier tracing are kept."""
    ends: dict[str, str] = {}
    for node in traced.graph.nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            if path and node.op == "call_module":
                ends[path] = str(node.target)
    earlier: dict[str, str] = module.meta.get(BLOCKS, {}) if isinstance(module, fx.GraphModule) else {}
    return {**earlier, **ends}


def reading_points(traced: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """For each convolution and linear layer the modules whose outputs the next layers read, one for every call.

    These follow the layer's own normalisation, activation and dropout, as long as nothing else reads the values in between.
    All names are submodules of ``traced``.
    """
    nodes = reading_nodes(traced)
    return {layer: tuple(dict.fromkeys(str(node.target) for node in found)) for layer, found in nodes.items()}


def reading_nodes(traced: fx.GraphModule) -> dict[str, tuple[fx.Node, ...]]:
    """The calls of the modules that ``reading_points`` names: for each layer one node for every call of it."""
    modules = dict(traced.named_modules())
    found: dict[str, tuple[fx.Node, ...]] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], _ConvNd | nn.Linear):
            continue
        last = node
        while len(last.users) == 1:
            reader = next(iter(last.users))
            if reader.op != "call_module" or not isinstance(modules[reader.target], PER_CHANNEL):
                break
            last = reader
        found[node.target] = (*found.get(node.target, ()), last)
    return found


def following_norms(module: nn.Module, example: Tensor | None = None) -> dict[str, tuple[str, _BatchNorm]]:
    """For each layer the BatchNorm that is its only reader, as (name, module). Empty if the network cannot be traced."""
    try:
        traced = trace(module, example)
    except InputError:
        return {}
    own = dict(module.named_modules())
    inside = dict(traced.named_modules())
    found: dict[str, tuple[str, _BatchNorm]] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        reader = next(iter(node.users))
        if reader.op != "call_module" or not isinstance(inside[node.target], _ConvNd | nn.Linear):
            continue
        norm = own.get(reader.target)
        if isinstance(norm, _BatchNorm):
            found[node.target] = (reader.target, norm)
    return found


def has_channel_padding(traced: fx.GraphModule) -> bool:
    """Whether the network pads channels with zeros, which torch-pruning can follow only as a module."""
    return any(isinstance(child, ZeroPadChannels) for child in traced.modules())


def _remove_in_place_operations(traced: fx.GraphModule) -> None:
    """Make what reads a tensor after an in-place operation read the operation's result, and the operation out of place
    where torch has such a form."""
    modules = dict(traced.named_modules())
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        in_place = is_in_place(node)
        if node.op == "call_module":
            in_place = getattr(modules[node.target], "inplace", False) is True
        if in_place and node.args and isinstance(node.args[0], fx.Node):
            node.args[0].replace_all_uses_with(
                node,
                delete_user_cb=lambda user, node=node: order[user] > order[node],  # type: ignore[misc]
            )
            _take_out_of_place(node)


_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def _take_out_of_place(node: fx.Node) -> None:
    """Replace ``relu_`` by ``relu``, and drop ``inplace=True``."""
    if node.op == "call_module":
        return
    if "inplace" in node.kwargs:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.op == "call_method" and hasattr(Tensor, name.removesuffix("_")):
        node.target = name.removesuffix("_")
    elif node.op == "call_function" and name.endswith("_"):
        for home in (F, torch):
            if hasattr(home, name.removesuffix("_")):
                node.target = getattr(home, name.removesuffix("_"))
                break
    elif node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
    elif len(node.args) > 1 and node.args[1] is True:  # F.relu(x, True)
        node.args = (node.args[0], False, *node.args[2:])


def _replace(traced: fx.GraphModule, node: fx.Node, module: nn.Module, arguments: tuple[Any, ...]) -> None:
    name = free_name(traced, f"{node.name}_{type(module).__name__.lower()}")
    traced.add_submodule(name, module)
    with traced.graph.inserting_after(node):
        new = traced.graph.call_module(name, arguments)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    traced.graph.erase_node(node)


def _give_own_module(traced: fx.GraphModule, node: fx.Node, called: set[str]) -> None:
    """Copy a module without parameters and buffers for a further call of it."""
    target = str(node.target)
    module = traced.get_submodule(target)
    if target in called and not list(module.parameters()) and not list(module.buffers()):
        parent, _, leaf = target.rpartition(".")
        name = free_name(traced, f"{parent + '.' if parent else ''}{leaf}_again")
        traced.add_submodule(name, copy.deepcopy(module))
        node.target = name
    called.add(target)


def free_name(traced: fx.GraphModule, wanted: str) -> str:
    """``wanted``, or with a number if a module or attribute has that name."""
    taken = {name for name, _ in traced.named_modules()}
    name, count = wanted, 1
    while name in taken or _has_attribute(traced, name):
        count += 1
        name = f"{wanted}{count}"
    return name


def _has_attribute(root: nn.Module, name: str) -> bool:
    holder: Callable[..., Any] | nn.Module | None = root
    for part in name.split("."):
        if not hasattr(holder, part):
            return False
        holder = getattr(holder, part)
    return True
