"""Which nodes of a traced network need which others."""

from collections.abc import Iterable

from torch import fx


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


def depends_on(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node's value comes from another's, directly or not."""
    return source in needed_for([node])
