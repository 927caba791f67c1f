"""The output that holds the class scores, where a network returns several: named by the user, or found in its graph."""

import functools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only

from ...common.errors import InputError
from ..graph.execution import output_node
from ..graph.reach import dependents, needed_for
from ..graph.trace import trace
from .outputs import LOGITS, entries, scores_in, tensors_in


def choose_output(module: nn.Module, wanted: str | None, example: Tensor) -> tuple[str | None, tuple[str, ...]]:
    """Put the class scores first in what a network returns, unless they are found without that.

    Without ``wanted`` they are those that are computed from the others, as logits are from features that are returned with
    them.

    Returns:
        The output's name if it was put first, and notes.

    Raises:
        InputError: the network has no output of that name, or it has another shape than class scores.
    """
    try:
        with torch.no_grad():
            output = module(example)
    except Exception:  # whatever a user's forward raises is told by check_network
        return None, ()
    scores = scores_in(output)
    usual = next((name for name in LOGITS if name in scores), None)
    first = next(iter(tensors_in(output)), None)
    notes: tuple[str, ...] = ()
    if wanted is not None:
        if wanted not in scores:
            raise InputError(
                f"--output {wanted}: the model returns {_listed(tensors_in(output))}. Name one of {_fit(scores)}."
            )
        name: str | None = wanted
    elif usual is not None or len(scores) < 2:
        name = usual or next(iter(scores), None)
    else:
        left = _heads(module, example, scores)
        name = left[0]
        others = ", ".join(repr(other) for other in scores if other != name)
        notes = (
            f"The model returns several outputs that may be class scores ({_listed(scores)}). {name!r} is taken"
            + ("" if len(left) > 1 else ", which is computed from the others")
            + f"; --output takes {others} instead.",
        )
    if name is None or name == first:
        return None, notes
    put_first(module, name)
    return name, notes


def put_first(module: nn.Module, name: str) -> None:
    """Have a network return ``(scores, output)``: the output of that name, and what it has returned so far."""
    if isinstance(module, fx.GraphModule):
        node = output_node(module)
        returned = node.args[0]
        with module.graph.inserting_before(node):
            chosen = _entry(tree_map_only(fx.Node, fx.Proxy, returned), name).node
        node.args = ((chosen, returned),)
        module.recompile()
        return
    own: Any = type(module)

    @functools.wraps(own.forward)  # torch.fx reads its signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        output = own.forward(self, *args, **kwargs)
        return _entry(output, name), output

    module.__class__ = type(own.__name__, (own,), {"forward": forward, "__module__": own.__module__})


def _heads(module: nn.Module, example: Tensor, scores: dict[str, Tensor]) -> list[str]:
    """Candidates from which no other is computed by a layer; all of them if the graph does not tell."""
    try:
        view = trace(module, example)
    except InputError:
        return list(scores)
    nodes = _named_nodes(output_node(view).args[0])
    if not set(scores) <= set(nodes):
        return list(scores)
    left = [
        name
        for name in scores
        if not any(_feeds(view, nodes[name], nodes[other], scores[name], scores[other]) for other in scores)
    ]
    return left or list(scores)


def _feeds(view: fx.GraphModule, node: fx.Node, other: fx.Node, value: Tensor, later: Tensor) -> bool:
    """Whether the other is computed from a node, by a layer or with another width."""
    needed = set(needed_for([other]))
    if node is other or node not in needed:
        return False
    between = [each for each in dependents(view, node)[1:] if each in needed]
    layers = [each for each in between if each.op == "call_module" and _is_layer(view.get_submodule(str(each.target)))]
    return bool(layers) or value.shape[1] != later.shape[1]


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | _ConvNd)


def _named_nodes(returned: Any) -> dict[str, fx.Node]:
    if isinstance(returned, fx.Node):
        return {"": returned}
    return {
        f"{name}.{inner}" if inner else name: node
        for name, value in entries(returned)
        for inner, node in _named_nodes(value).items()
    }


def _entry(output: Any, name: str) -> Any:
    """What lies under a name of ``tensors_in`` in an output, which may be a trace's proxy."""
    if not name:
        return output
    if isinstance(output, fx.Proxy):
        key, _, rest = name.partition(".")
        return _entry(output[int(key) if key.isdigit() else key], rest)  # type: ignore[index]
    for key, value in entries(output):
        if name == key or name.startswith(f"{key}."):
            return _entry(value, name[len(key) + 1 :])
    raise KeyError(name)


def _listed(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name!r} of {'x'.join(map(str, each.shape))}" for name, each in tensors.items())


def _fit(scores: dict[str, Tensor]) -> str:
    return ", ".join(map(repr, scores)) or "none: wrap the model so that it returns class scores"
