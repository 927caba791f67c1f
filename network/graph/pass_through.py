"""Sums with a branch that was removed: what the branch still adds, and the network without sums that add nothing.

A branch that was removed whole is a :class:`~secateur.network.graph.stand_ins.Constant`, perhaps with a BatchNorm behind it. If
that gives exactly zero, the sum is the other branch, and an activation that this branch ends in need not be applied again.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .execution import run_node
from .leaf_modules import Add
from .reach import depends_on
from .stand_ins import Constant
from .trace import trace

_DEPTHS = ("StochasticDepth", "DropPath")
_IDEMPOTENT = (nn.ReLU, nn.ReLU6)
_KEEPS_RANGE = (nn.MaxPool2d, nn.Identity, nn.Dropout, nn.Dropout2d)


@dataclass(frozen=True)
class RemovedBranch:
    """A removed branch in a traced network: its constant ``layer``, the name of the BatchNorm behind it or "", the ``join``
    that it feeds, and the ``other`` branch, which is the removed one's own input if ``identity``."""

    layer: str
    norm: str
    join: fx.Node
    other: fx.Node
    identity: bool


def removed_branches(view: fx.GraphModule) -> tuple[RemovedBranch, ...]:
    """The removed branches that a sum reads, in the order of the network."""
    return tuple(
        branch for node in view.graph.nodes if _is(view, node, Constant) and (branch := _branch(view, node)) is not None
    )


def adds_zero(module: nn.Module, branch: RemovedBranch) -> bool:
    """Whether a branch gives exactly zero in evaluation mode."""
    constant: Any = module.get_submodule(branch.layer)
    value = constant.bias.detach().view(1, -1, 1, 1)
    if branch.norm:
        norm: Any = module.get_submodule(branch.norm)
        if norm.running_mean is None:
            return False
        value = torch.nn.functional.batch_norm(
            value, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
    return not bool(value.any())


def set_to_zero(module: nn.Module, branch: RemovedBranch) -> None:
    """Let a branch give exactly zero, in training mode too; statistics estimated again keep it there."""
    constant: Any = module.get_submodule(branch.layer)
    values = [constant.bias]
    if branch.norm:
        norm: Any = module.get_submodule(branch.norm)
        values += [value for value in (norm.bias, norm.running_mean) if value is not None]
    with torch.no_grad():
        for value in values:
            value.zero_()


@contextlib.contextmanager
def holding_zeros(module: nn.Module, example: Tensor) -> Iterator[None]:
    """Exclude branches that give zero from training: their parameters get no gradients."""
    held: list[nn.Parameter] = []
    if _has_constants(module):
        for branch in removed_branches(trace(module, _beside(example, module))):
            if adds_zero(module, branch):
                names = [name for name in (branch.layer, branch.norm) if name]
                held += [value for name in names for value in module.get_submodule(name).parameters()]
    needed = [value.requires_grad for value in held]
    try:
        for value in held:
            value.requires_grad_(False)
        yield
    finally:
        for value, before in zip(held, needed, strict=True):
            value.requires_grad_(before)


def without_zero_sums(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy without sums with zero and without activations of what has passed them already; equal outputs, equal names of
    parameters. The module itself if it has no removed branches.

    Raises:
        InputError: the network cannot be traced.
    """
    if not _has_constants(module):
        return module
    example = _beside(example, module)
    view = trace(module, example)
    shapes = _shapes(view, example)
    for branch in removed_branches(view):
        if adds_zero(view, branch) and shapes[branch.other] == shapes[branch.join]:
            branch.join.replace_all_uses_with(branch.other)
    for node in list(view.graph.nodes):
        if _is(view, node, *_IDEMPOTENT) and _is_activated(view, node.args[0], type(view.get_submodule(node.target))):
            node.replace_all_uses_with(node.args[0])
    view.graph.eliminate_dead_code()
    view.recompile()
    return view


def passes(view: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the identity in evaluation mode."""
    if node.op == "call_module":
        module = view.get_submodule(str(node.target))
        return isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or type(module).__name__ in _DEPTHS
    return node.op == "call_function" and getattr(node.target, "__name__", "") in ("dropout", "stochastic_depth")


def _branch(view: fx.GraphModule, node: fx.Node) -> RemovedBranch | None:
    norm, last = "", node
    while len(last.users) == 1:
        reader = next(iter(last.users))
        if _is(view, reader, Add):
            break
        if _is(view, reader, _BatchNorm) and not norm:
            norm = str(reader.target)
        elif not passes(view, reader):
            return None
        last = reader
    else:
        return None
    others = [source for source in reader.args if source is not last]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    start = others[0]
    while passes(view, start):
        start = start.all_input_nodes[0]
    return RemovedBranch(str(node.target), norm, reader, others[0], depends_on(node, start))


def _is_activated(view: fx.GraphModule, node: Any, kind: type[nn.Module]) -> bool:
    """Whether a value has passed an activation already."""
    while _is(view, node, *_KEEPS_RANGE):
        node = node.args[0]
    return _is(view, node, kind)


def _is(view: fx.GraphModule, node: Any, *kinds: type[nn.Module]) -> bool:
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return called and isinstance(view.get_submodule(str(node.target)), kinds)


def _has_constants(module: nn.Module) -> bool:
    return any(isinstance(child, Constant) for child in module.modules())


def _beside(example: Tensor, module: nn.Module) -> Tensor:
    return example.to(next(module.parameters()).device)


def _shapes(view: fx.GraphModule, example: Tensor) -> dict[fx.Node, torch.Size | None]:
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in view.graph.nodes:
            values[node] = example if node.op == "placeholder" else run_node(view, node, values.__getitem__)
    return {node: getattr(value, "shape", None) for node, value in values.items()}
