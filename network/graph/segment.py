"""The part of a traced network that depends on one node, run by itself."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from .execution import Values, image_dependent, run_graph, run_nodes
from .reach import dependents, needed_for


class Segment:
    """The part of a traced network that depends on ``source`` and that the wanted nodes need.

    ``reads`` are the nodes outside whose values it needs; there are none if ``source`` carries everything. To run it from other
    values of ``source``, possibly with several rows per image, give the values of ``reads`` from one run of the whole network,
    and for every row the image that it belongs to.

    Raises:
        ValueError: a wanted node does not depend on ``source``.
    """

    def __init__(self, view: fx.GraphModule, source: fx.Node, wanted: Sequence[fx.Node]) -> None:
        dependent = set(dependents(view, source))
        for node in wanted:
            if node not in dependent:
                raise ValueError(f"{node.name} does not depend on {source.name}")
        needed = needed_for(wanted, stop=lambda node: node is source)
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
            values: the values of ``source``, ``[rows, …]``.
            images: the images, ``[n, C, H, W]``.
            known: the values of ``reads`` for these images.
            rows: the index of every row's image, int64 ``[rows]``.
        """
        start: dict[fx.Node, Any] = {self.source: values}
        shaped = [node for node in self.reads if node not in self._per_image]
        if shaped:  # the number of images, for example, which is now that of rows
            start |= run_graph(self.view, images.index_select(0, rows), shaped)
        for node in self.reads:
            if node in self._per_image:
                value = known[node]
                each = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(images)
                start[node] = value.index_select(0, rows) if each else value
        found = run_nodes(self.view, self.nodes, start, set(self.wanted), {})
        return [values if node is self.source else found[node] for node in self.wanted]
