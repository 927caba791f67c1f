"""Running a traced network node by node: all of it, or only the part that depends on one place."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .tracer import is_shape

Values = Mapping[fx.Node, Any]
Changes = Mapping[fx.Node, Callable[[Tensor], Tensor]]
"""For a node what its readers get instead of its value; the function leaves what it is given as it is."""


def run_node(view: fx.GraphModule, node: fx.Node, read: Callable[[fx.Node], Any]) -> Any:
    """Run one node; ``read`` gives the values of its sources. A placeholder is read from ``read`` as well."""
    if node.op == "placeholder":
        return read(node)
    arguments = fx.node.map_arg(node.args, read)
    options = fx.node.map_arg(node.kwargs, read)
    if is_in_place(node) and isinstance(arguments[0], Tensor):  # others may read what it is given
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
    told = node.kwargs.get("inplace") is True or (functional and len(node.args) > 1 and node.args[1] is True)
    return assigning or told or (name.endswith("_") and not name.endswith("__"))


def run_graph(
    view: fx.GraphModule, images: Tensor, wanted: Iterable[fx.Node], changes: Changes | None = None
) -> dict[fx.Node, Any]:
    """The values of the wanted nodes for a batch ``[n, C, H, W]``; every other value is dropped after its last reader.

    ``changes`` alter values on their way, and with them all that depends on them.
    """
    wanted = set(wanted)
    placeholder = next(node for node in view.graph.nodes if node.op == "placeholder")
    needed = needed_for(wanted)
    nodes = [node for node in view.graph.nodes if node in needed]
    return _run(view, nodes, {placeholder: images}, wanted, changes or {})


def run_between(view: fx.GraphModule, given: Values, wanted: Iterable[fx.Node]) -> dict[fx.Node, Any]:
    """The wanted nodes' values where those of the given nodes are known, which stand for all that lies before them.

    The images are among them, as many as there are rows: a shape may be asked of what lies before.
    """
    needed = needed_for(wanted, stop=given)
    return _run(view, [node for node in view.graph.nodes if node in needed], given, set(wanted), {})


def _run(
    view: fx.GraphModule, nodes: Sequence[fx.Node], start: Values, wanted: set[fx.Node], changes: Changes
) -> dict[fx.Node, Any]:
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


def needed_for(wanted: Iterable[fx.Node], stop: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """The wanted nodes and all that they depend on, not going back beyond ``stop``."""
    needed: set[fx.Node] = set()
    pending = list(wanted)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += [] if node in stop else node.all_input_nodes
    return needed


class Segment:
    """The part of a traced network that depends on ``source``, as far as the wanted nodes need it.

    ``reads`` are the nodes outside whose values it takes, none where ``source`` carries everything. To run it from other values
    of ``source`` than the network's own, more rows than images among them, give the values of ``reads`` from one run of the
    whole network, and for every row the image it belongs to.

    Raises:
        ValueError: a wanted node does not depend on ``source``.
    """

    def __init__(self, view: fx.GraphModule, source: fx.Node, wanted: Sequence[fx.Node]) -> None:
        dependent = {source}
        for node in view.graph.nodes:
            if any(reader in dependent for reader in node.all_input_nodes):
                dependent.add(node)
        for node in wanted:
            if node not in dependent:
                raise ValueError(f"{node.name} does not depend on {source.name}")
        needed = needed_for(wanted, stop=(source,))
        self.view, self.source, self.wanted = view, source, tuple(wanted)
        constant = {node for node in needed - dependent if node.op == "get_attr"}
        self._per_image = image_dependent(view)
        inside = needed & dependent
        self.nodes = [node for node in view.graph.nodes if node in inside | constant and node is not source]
        read = {reader for node in inside - {source} for reader in node.all_input_nodes} - inside - constant
        self.reads = tuple(node for node in view.graph.nodes if node in read)

    def run(self, values: Tensor, images: Tensor, known: Values, rows: Tensor) -> list[Any]:
        """The wanted nodes' values for other values of ``source``.

        Args:
            values: what ``source`` gives, ``[rows, …]``.
            images: the images, ``[n, C, H, W]``.
            known: the values of ``reads`` for these images.
            rows: for every row its image, int64 ``[rows]``.
        """
        start: dict[fx.Node, Any] = {self.source: values}
        shaped = [node for node in self.reads if node not in self._per_image]
        if shaped:  # a number of images among them, say: it follows the rows
            start |= run_graph(self.view, images.index_select(0, rows), shaped)
        for node in self.reads:
            if node in self._per_image:
                value = known[node]
                each = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(images)
                start[node] = value.index_select(0, rows) if each else value
        found = _run(self.view, self.nodes, start, set(self.wanted), {})
        return [values if node is self.source else found[node] for node in self.wanted]


def image_dependent(view: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values depend on the images, other than through their shapes."""
    found: set[fx.Node] = set()
    for node in view.graph.nodes:
        flows = not is_shape(node) and any(source in found for source in node.all_input_nodes)
        if node.op == "placeholder" or flows:
            found.add(node)
    return found


def depends_on(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node's value comes from another's, directly or not."""
    return source in needed_for([node])


def output_node(view: fx.GraphModule) -> fx.Node:
    """The node whose value the network returns (a tuple or mapping of nodes stays wrapped in it)."""
    node: fx.Node = next(node for node in view.graph.nodes if node.op == "output")
    return node


def is_image_map(value: Any) -> bool:
    """Whether a value is a feature map, ``[n, C, H, W]``."""
    return isinstance(value, torch.Tensor) and value.dim() == 4
