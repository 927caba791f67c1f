"""Labels for the channels of every value of a traced network, and the layers whose channels they are.

Every channel that a layer computes gets a label of its own. Operations that move elements are run on the labels; operations
that work place by place tie the labels that meet; layers read labels. What sums or normalises over channels without a layer's
weights is followed where removing a channel is removing its share, and locks the labels otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_map_only

from ..graph.execution import output_node
from ..loading.outputs import logits_name, tensors_in
from .functions import Functions
from .moves import is_move, varying
from .parts import HEAD_LOCK, Part, no_labels

BESIDE = "the network returns it beside the classes."
LABELLED_ELEMENTS = 2**22
"""Parameters with more elements than this are not followed element by element."""


@dataclass(frozen=True)
class Labelling:
    """What belongs together in a network.

    ``of``: the labels of every node's value, broadcast to its shape for one image. ``parts``: the layers' channels.
    ``locked``: the reasons why channels must stay, by label. ``summed``: labels that pass through a sum of branches. Labels
    that are tied are one label.
    """

    of: dict[fx.Node, Any]
    parts: tuple[Part, ...]
    locked: dict[int, str]
    summed: frozenset[int]
    values: dict[fx.Node, Any] = field(repr=False)


def label_channels(view: fx.GraphModule, example: Tensor, whole: bool = True) -> Labelling:
    """Follow the channels of a traced network.

    Args:
        view: the network from ``trace``, in evaluation mode.
        example: ``[n, C, H, W]``, of which the first image is run.
        whole: every value must stay a whole block: where channels lie along two dimensions, as in a shuffle by ``view`` and
            ``transpose``, those of one dimension are tied.
    """
    return _Follower(view, example[:1]).follow(whole)


class _Follower(Functions):
    @torch.no_grad()
    def follow(self, whole: bool) -> Labelling:
        for node in self.view.graph.nodes:
            if node.op != "output":
                self.of[node] = self._labels(node)
        self.ties.resolve()
        self._lock_outputs(output_node(self.view))
        while whole and self._make_rectangular():
            self.ties.resolve()
        of = {node: tree_map_only(Tensor, self.ties.resolved, labels) for node, labels in self.of.items()}
        summed = {int(label) for labels in self.summed for label in self.ties.resolved(labels).unique()}  # type: ignore[no-untyped-call]
        parts = [Part(part.layer, part.side, self._vector(part), part.dim) for part in self.sides.values()]
        return Labelling(
            of, (*parts, *self._parameters(parts)), self.ties.locked(), frozenset(summed - {0}), self.values
        )

    def _vector(self, part: Part) -> Tensor:
        return self.ties.resolved(part.labels).expand(len(part.labels)).clone()

    def _parameters(self, parts: Sequence[Part]) -> list[Part]:
        """The parameters whose elements meet channels, cut along the dimension of these channels."""
        channels = {int(label) for part in parts for label in part.labels.unique()} - {0}  # type: ignore[no-untyped-call]
        found = []
        for name, elements in self.elements.items():
            labels = self.ties.resolved(elements)
            met = [int(label) for label in labels.unique() if int(label) in channels]  # type: ignore[no-untyped-call]
            dims = varying(labels)
            if met and len(dims) == 1:
                vector = labels.flatten()
                known = torch.tensor(sorted(channels))
                found.append(Part(name, "out", torch.where(torch.isin(vector, known), vector, 0), dims[0]))
            elif met:
                for label in met:
                    self.ties.lock(torch.tensor([label]), f"the parameter {name} belongs to several channels at once.")
        return found

    def _make_rectangular(self) -> bool:
        """Tie what values that stay whole tie: an index of a dimension goes for all indices of the others, or not at all."""
        changed = False
        for node, labels in self.of.items():
            for each in tree_flatten(labels)[0]:
                if isinstance(each, Tensor) and node in self.data:
                    resolved = self.ties.resolved(each)
                    dims = varying(resolved)
                    if len(dims) > 1:
                        kept = max(dims, key=lambda dim: resolved.shape[dim])
                        self.ties.collapse(resolved, [dim for dim in dims if dim != kept])
                        changed = True
        return changed

    def _lock_outputs(self, node: fx.Node) -> None:
        """Lock the classes, and other outputs that no layer reads, such as a second head's."""
        returned = tree_map_only(fx.Node, lambda each: self.values[each], node.args[0])
        classes = tensors_in(returned).get(logits_name(returned) or "")
        read = {int(label) for part in self.sides.values() if part.side == "in" for label in self._vector(part)}
        for each in tree_flatten(node.args[0])[0]:
            if isinstance(each, fx.Node) and each in self.of:
                values, labels = tree_flatten(self.values[each])[0], tree_flatten(self.of[each])[0]
                for value, own in zip(values, labels, strict=True):
                    if value is classes:
                        self.ties.lock(own, HEAD_LOCK)
                    elif isinstance(own, Tensor):
                        found = own.unique()  # type: ignore[no-untyped-call]
                        unread = ~torch.isin(self.ties.resolved(found).expand_as(found), torch.tensor(sorted(read)))
                        self.ties.lock(found[unread], BESIDE)

    def _labels(self, node: fx.Node) -> Any:
        value = self.values[node]
        if not any(isinstance(each, Tensor) for each in tree_flatten(value)[0]):
            return None
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if node.op == "placeholder":
            return no_labels(value)
        if node.op == "get_attr":
            return self._constant(str(node.target), value)
        if module is not None and (found := self._through_module(node, module, value)) is not None:
            return found
        if not self._labelled(node):
            return tree_map_only(Tensor, no_labels, value)
        if is_move(node, module):
            return self._moved(node, module)
        if module is None and (found := self._through_function(node, value)) is not None:
            return found
        return self._tried(node, module, value)

    def _constant(self, name: str, value: Tensor) -> Tensor:
        if value.numel() < 2 or value.numel() > LABELLED_ELEMENTS or not value.is_floating_point():
            return no_labels(value)
        if name not in self.elements:
            self.elements[name] = self.ties.fresh(value.numel()).reshape(value.shape)
        return self.elements[name]
