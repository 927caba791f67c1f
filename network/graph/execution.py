"""Run a traced network node by node: all of it, or the part between given and wanted nodes."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .reach import needed_for
from .shapes import is_shape

Values = Mapping[fx.Node, Any]
Changes = Mapping[fx.Node, Callable[[Tensor], Tensor]]
"""For a node, a function of its value that its readers get instead; it must not change its argument."""


def run_node(view: fx.GraphModule, node: fx.Node, read: Callable[[fx.Node], Any]) -> Any:
    """Run one node; ``read`` gives the values of its inputs, and of the node itself if it is a placeholder."""
    if node.op == "placeholder":
        return read(node)
    arguments = fx.node.map_arg(node.args, read)
    options = fx.node.map_arg(node.kwargs, read)
    if is_in_place(node) and isinstance(arguments[0], Tensor):  # other nodes may read the argument
        arguments = (arguments[0].clone(), *arguments[1:])
    if node.op == "call_module":
        return view.get_submodule(str(node.target))(*arguments, **options)
    if node.op == "call_function":
        return node.target(*arguments, **options)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **options)
    if node.op == "get_attr":
        holder: Any = view
        for part in str(node.target).split("."):
            holder = getattr(holder, part)
        return holder
    return arguments[0]


def is_in_place(node: fx.Node) -> bool:
    """Whether a call of a function or method may write into its first argument."""
    if node.op not in ("call_method", "call_function"):
        return False
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    assigning = node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    functional = getattr(node.target, "__module__", "") == "torch.nn.functional"
    requested = node.kwargs.get("inplace") is True or (functional and len(node.args) > 1 and node.args[1] is True)
    return assigning or requested or (name.endswith("_") and not name.endswith("__"))


def run_graph(
    view: fx.GraphModule, images: Tensor, wanted: Iterable[fx.Node], changes: Changes | None = None
) -> dict[fx.Node, Any]:
    """The values of the wanted nodes for a batch ``[n, C, H, W]``; every other value is freed after its last use.

    ``changes`` alter values on the way, and with them all that depends on them.
    """
    wanted = set(wanted)
    placeholder = next(node for node in view.graph.nodes if node.op == "placeholder")
    needed = needed_for(wanted)
    nodes = [node for node in view.graph.nodes if node in needed]
    return run_nodes(view, nodes, {placeholder: images}, wanted, changes or {})


def run_between(view: fx.GraphModule, given: Values, wanted: Iterable[fx.Node]) -> dict[fx.Node, Any]:
    """The wanted nodes' values from those of the given nodes, which replace all that comes before them.

    ``given`` must hold the images, one per row, since nodes may need their shape.
    """
    needed = needed_for(wanted, stop=given.__contains__)
    return run_nodes(view, [node for node in view.graph.nodes if node in needed], given, set(wanted), {})


def run_nodes(
    view: fx.GraphModule, nodes: Sequence[fx.Node], start: Values, wanted: set[fx.Node], changes: Changes
) -> dict[fx.Node, Any]:
    """Run ``nodes`` in their order from the values in ``start``; the values of the wanted ones."""
    last = {source: node for node in nodes for source in node.all_input_nodes}
    dropped: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if source not in wanted:
            dropped.setdefault(node, []).append(source)
    values = dict(start)
    for node in nodes:
        if node not in values:
            values[node] = run_node(view, node, values.__getitem__)
        if node in changes:
            values[node] = changes[node](values[node])
        for source in dropped.get(node, ()):
            values.pop(source, None)
    return {node: value for node, value in values.items() if node in wanted}


def image_dependent(view: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values depend on the images, except through their shapes."""
    found: set[fx.Node] = set()
    for node in view.graph.nodes:
        flows = not is_shape(node) and any(source in found for source in node.all_input_nodes)
        if node.op == "placeholder" or flows:
            found.add(node)
    return found


def output_node(view: fx.GraphModule) -> fx.Node:
    """The node whose value the network returns, which may be a tuple or mapping."""
    node: fx.Node = next(node for node in view.graph.nodes if node.op == "output")
    return node


def is_image_map(value: Any) -> bool:
    """Whether a value is a feature map, ``[n, C, H, W]``."""
    return isinstance(value, torch.Tensor) and value.dim() == 4
