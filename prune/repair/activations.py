"""Activations of a traced network: kept for all batches, or streamed batch by batch."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from ...network.graph.execution import run_node
from ...network.images.images import Images


class Activations:
    """The outputs of a traced network's nodes over all batches, computed on demand and dropped after their last reader."""

    def __init__(self, view: fx.GraphModule) -> None:
        self.view = view.eval()
        self.nodes = {node.name: node for node in view.graph.nodes}
        self._values: dict[fx.Node, list[Any]] = {}
        self._readers = {node: len(node.users) for node in view.graph.nodes}
        self._order = {node: index for index, node in enumerate(view.graph.nodes)}
        self._made: set[fx.Node] = set()
        self._held: Counter[fx.Node] = Counter()
        self._inputs: list[Tensor] = []

    def feed(self, images: Images, batch_size: int) -> None:
        device = next(self.view.parameters()).device
        self._inputs = [batch.to(device) for batch, _ in images.batches(batch_size)]

    def get(self, node: fx.Node) -> list[Any]:
        """One value per batch."""
        if node in self._values:
            return self._values[node]
        needed, pending = {node}, [node]
        while pending:
            fresh = [
                source
                for source in pending.pop().all_input_nodes
                if source not in self._values and source not in needed
            ]
            needed.update(fresh)
            pending += fresh
        uses = Counter(source for reader in needed for source in reader.all_input_nodes)
        uses[node] += 1
        for reader in sorted(needed, key=self._order.__getitem__):
            self._values[reader] = [self.run(reader, batch) for batch in range(len(self._inputs))]
            first = reader not in self._made
            self._made.add(reader)
            for source in reader.all_input_nodes:
                uses[source] -= 1
                self._readers[source] -= first  # on recomputation its readers were counted before
                if not uses[source]:
                    self._forget(source)
        return self._values[node]

    def hold(self, node: fx.Node) -> None:
        """Keep a node's values until :meth:`release`."""
        self._held[node] += 1

    def release(self, node: fx.Node) -> None:
        self._held[node] -= 1
        self._forget(node)

    def _forget(self, node: fx.Node) -> None:
        if self._readers[node] <= 0 and self._held[node] <= 0:
            self._values.pop(node, None)

    @property
    def batches(self) -> int:
        return len(self._inputs)

    def read(self, node: fx.Node, batch: int, changed: Mapping[fx.Node, Any] = MappingProxyType({})) -> Any:
        """A node's value for one batch: from ``changed`` if it is there, else its own, which must be held."""
        return changed[node][batch] if node in changed else self._values[node][batch]

    def run(self, node: fx.Node, batch: int, changed: Mapping[fx.Node, Any] = MappingProxyType({})) -> Any:
        """Run one node on one batch."""
        if node.op == "placeholder":
            return self._inputs[batch]
        return run_node(self.view, node, lambda source: self.read(source, batch, changed))


class Stream:
    """A traced network on a set of images, batch by batch, computed from values stored at one position of the network.

    The position advances through the network in order. Stored values never take more than ``memory_bytes``; if they would, the
    position does not advance and more is computed again, so that memory does not grow with the number of images.

    Attributes:
        shapes: the shape of each node's tensor for one image.
    """

    def __init__(self, view: fx.GraphModule, images: Images, batch_size: int, memory_bytes: int) -> None:
        self.view, self.images, self.batch_size, self.memory_bytes = view.eval(), images, batch_size, memory_bytes
        self.nodes = {node.name: node for node in view.graph.nodes}
        self.order = {node: index for index, node in enumerate(view.graph.nodes)}
        self._stored: list[dict[fx.Node, Any]] = []
        self._device = next(view.parameters()).device
        self.shapes: dict[fx.Node, torch.Size] = {}
        self._bytes = self._bytes_per_image()

    def handed_to(self, view: fx.GraphModule) -> "Stream":
        """A stream of another network on the same images, from the position stored here.

        Args:
            view: a network with nodes of the same names, which computes the same up to that position.
        """
        other = Stream(view, self.images, self.batch_size, self.memory_bytes)
        other._stored = [{other.nodes[node.name]: value for node, value in batch.items()} for batch in self._stored]
        return other

    def values(self, wanted: Sequence[fx.Node]) -> Iterator[list[Any]]:
        """The values of some nodes, one list per batch."""
        plan = self._plan(wanted)
        for start in self._starts():
            yield self._run(start, plan, wanted)

    def advance(self, node: fx.Node) -> None:
        """Move the stored position to just before ``node``, if the values needed from there on fit in memory."""
        place = self.order[node]
        alive = [
            source
            for source, index in self.order.items()
            if index < place and source.op != "get_attr" and any(self.order[user] >= place for user in source.users)
        ]
        if sum(self._bytes[source] for source in alive) * len(self.images) > self.memory_bytes:
            return
        plan = self._plan(alive)
        stored = []
        for index, start in enumerate(self._starts()):
            stored.append(dict(zip(alive, self._run(start, plan, alive), strict=True)))
            if self._stored:
                self._stored[index] = {}
        self._stored = stored

    def _starts(self) -> Iterator[dict[fx.Node, Any]]:
        if self._stored:
            yield from self._stored
            return
        placeholder = next(node for node in self.order if node.op == "placeholder")
        for batch, _ in self.images.batches(self.batch_size):
            yield {placeholder: batch.to(self._device)}

    def _plan(self, wanted: Sequence[fx.Node]) -> list[tuple[fx.Node, list[fx.Node]]]:
        """The nodes to run from the stored position, each with the nodes whose last reader it is."""
        known = set(self._stored[0]) if self._stored else {node for node in self.order if node.op == "placeholder"}
        needed: set[fx.Node] = set()
        pending = [node for node in wanted if node not in known]
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending += [source for source in node.all_input_nodes if source not in known]
        ordered = sorted(needed, key=lambda node: self.order[node])
        last: dict[fx.Node, fx.Node] = {}
        for node in ordered:
            for source in node.all_input_nodes:
                last[source] = node
        dropped: dict[fx.Node, list[fx.Node]] = {node: [] for node in ordered}
        for source, node in last.items():
            if source not in wanted:
                dropped[node].append(source)
        return [(node, dropped[node]) for node in ordered]

    def _run(
        self, start: Mapping[fx.Node, Any], plan: list[tuple[fx.Node, list[fx.Node]]], wanted: Sequence[fx.Node]
    ) -> list[Any]:
        values = dict(start)
        for node, dropped in plan:
            values[node] = run_node(self.view, node, values.__getitem__)
            for source in dropped:
                values.pop(source, None)
        return [values[node] for node in wanted]

    def _bytes_per_image(self) -> dict[fx.Node, int]:
        sizes: dict[fx.Node, int] = {}
        values: dict[fx.Node, Any] = {}
        batch = next(iter(self.images.batches(1)))[0].to(self._device)
        with torch.no_grad():
            for node in self.order:
                values[node] = batch if node.op == "placeholder" else run_node(self.view, node, values.__getitem__)
                sizes[node] = _bytes(values[node])
                if isinstance(values[node], Tensor):
                    self.shapes[node] = values[node].shape
        return sizes


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
