"""Which nodes of a traced network need which others."""

from collections.abc import Callable, Iterable

from torch import fx


def needed_for(wanted: Iterable[fx.Node], stop: Callable[[fx.Node], bool] = lambda node: False) -> set[fx.Node]:
    """The wanted nodes and all that they depend on; nodes at which ``stop`` is true are included, their inputs are not."""
    needed: set[fx.Node] = set()
    pending = list(wanted)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += [] if stop(node) else node.all_input_nodes
    return needed


def dependents(view: fx.GraphModule, source: fx.Node) -> list[fx.Node]:
    """The nodes whose values depend on ``source``, itself first, in the order of the graph."""
    found = {source: None}
    for node in view.graph.nodes:
        if any(reader in found for reader in node.all_input_nodes):
            found[node] = None
    return list(found)


def depends_on(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node's value comes from another's, directly or not."""
    return source in needed_for([node])
