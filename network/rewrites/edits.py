"""Edits of a traced graph that every rewrite needs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn

from ..graph.execution import image_dependent, run_node
from ..graph.reach import needed_for
from ..graph.trace import free_name


def constant_nodes(view: fx.GraphModule) -> set[fx.Node]:
    """The nodes that depend on parameters and buffers alone, not on images or their number."""
    found: set[fx.Node] = set()
    images = image_dependent(view)
    for node in view.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (
            node.op in ("call_function", "call_method", "call_module")
            and inputs
            and node not in images
            and all(source in found for source in inputs)
        ):
            found.add(node)
    return found


def constant_value(view: fx.GraphModule, node: fx.Node) -> Any:
    """The value of a constant node."""
    values: dict[fx.Node, Any] = {}
    needed = needed_for([node])
    with torch.no_grad():
        for each in view.graph.nodes:
            if each in needed:
                values[each] = run_node(view, each, values.__getitem__)
    return values[node]


def sources_of(node: fx.Node) -> list[str]:
    """The names of the parameters and buffers that a constant node is made from, in the order of the graph."""
    needed = needed_for([node])
    return [str(each.target) for each in node.graph.nodes if each in needed and each.op == "get_attr"]


def is_trainable(view: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a constant node is made from a parameter."""
    parameters = dict(view.named_parameters())
    return any(name in parameters for name in sources_of(node))


def put_layer(view: fx.GraphModule, node: fx.Node, layer: nn.Module, made_from: Iterable[str], kind: str) -> str:
    """Put a layer into the network, in the place of the module whose weights it takes over if that has no other use.

    Args:
        made_from: the names of the parameters and buffers that the layer was made from; their module is the place.
        kind: names the layer where it gets a place of its own, beside that module.
    """
    names = list(made_from)
    owner = names[0].rpartition(".")[0] if names else ""
    if owner and _serves_only(view, owner, node):
        view.set_submodule(owner, layer)
        return owner
    place = free_name(view, f"{owner}.{kind}" if owner else f"{node.name}_{kind}")
    view.add_submodule(place, layer)
    return place


def _serves_only(view: fx.GraphModule, owner: str, node: fx.Node) -> bool:
    """Whether a module without submodules gives its weights to one node alone and is not called itself."""
    if any(True for _ in view.get_submodule(owner).children()):
        return False
    needed = needed_for([node])
    for each in view.graph.nodes:
        if each.op == "call_module" and str(each.target) == owner:
            return False
        owned = each.op == "get_attr" and str(each.target).rpartition(".")[0] == owner
        if owned and (each not in needed or not _leads_only_to(each, node)):
            return False
    return True


def _leads_only_to(source: fx.Node, node: fx.Node) -> bool:
    """Whether nothing but ``node`` is made from a node, directly or not."""
    pending, seen = [source], set[fx.Node]()
    while pending:
        for user in pending.pop().users:
            if user is not node and user not in seen:
                if user.op == "output":
                    return False
                seen.add(user)
                pending.append(user)
    return all(user in needed_for([node]) for user in seen)


def call(view: fx.GraphModule, node: fx.Node, target: Any, arguments: tuple[Any, ...], **options: Any) -> fx.Node:
    """Insert a call before ``node``: of a module if ``target`` is its name, of a method for other names, else of a function."""
    with view.graph.inserting_before(node):
        if not isinstance(target, str):
            new = view.graph.call_function(target, arguments, options)
        elif _is_module(view, target):
            new = view.graph.call_module(target, arguments, options)
        else:
            new = view.graph.call_method(target, arguments, options)
    new.meta = dict(node.meta)
    return new


def _is_module(view: fx.GraphModule, name: str) -> bool:
    return any(name == other for other, _ in view.named_modules() if other)


def replace(view: fx.GraphModule, node: fx.Node, new: fx.Node) -> None:
    """Let the readers of ``node`` read ``new``, and remove what nothing reads any more."""
    node.replace_all_uses_with(new)
    erase_unread(view, node)


def erase_unread(view: fx.GraphModule, *nodes: fx.Node) -> None:
    """Remove nodes that nothing reads, and what only they read."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.users or node.op in ("placeholder", "output") or node._erased:
            continue
        sources = node.all_input_nodes
        view.graph.erase_node(node)
        pending += sources
