"""Labels through operations that work place by place, along places, or along dimensions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_map_only

from ..graph.execution import image_dependent, run_graph
from ..graph.leaf_modules import Add
from ..graph.shapes import is_shape
from .moves import compressed, varying
from .operations import operation_name
from .parts import Part, no_labels
from .ties import Ties

_SUMS = ("add", "iadd", "sub", "isub")


class Places:
    """What is known of a network while its channels are followed: values and labels by node, ties, layers' sides."""

    def __init__(self, view: fx.GraphModule, example: Tensor) -> None:
        self.view, self.ties = view, Ties()
        self.modules = dict(view.named_modules())
        self.data = image_dependent(view)
        with torch.no_grad():
            self.values = run_graph(view, example, [node for node in view.graph.nodes if node.op != "output"])
        self.of: dict[fx.Node, Any] = {}
        self.sides: dict[tuple[str, str], Part] = {}
        self.elements: dict[str, Tensor] = {}
        self.summed: list[Tensor] = []

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that a node reads, except through their shapes."""
        return [
            source
            for source in node.all_input_nodes
            if not is_shape(source)
            and isinstance(self.values.get(source), Tensor | tuple | list)
            and self.of.get(source) is not None
        ]

    def _labelled(self, node: fx.Node) -> bool:
        """Whether anything that a node reads has labels; constants alone count where nothing else is read."""
        found = self._operands(node)
        counted = [source for source in found if source in self.data] or found
        return any(
            bool(each.any())
            for source in counted
            for each in tree_flatten(self.of[source])[0]
            if isinstance(each, Tensor)
        )

    def _lock_operands(self, node: fx.Node, reason: str) -> None:
        for source in self._operands(node):
            for each in tree_flatten(self.of[source])[0]:
                if isinstance(each, Tensor) and source in self.data:
                    self.ties.lock(each, reason)

    def _elementwise(self, node: fx.Node, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        operands = [
            (self.of[source], self.values[source].shape, source in self.data)
            for source in self._operands(node)
            if isinstance(self.of[source], Tensor)
        ]
        labels = self._joined(operands, value.shape)
        summing = (node.op == "call_module" and isinstance(self.modules[str(node.target)], Add)) or (
            node.op != "call_module" and operation_name(node) in _SUMS
        )
        branches = [each for each, _, data in operands if data and bool(each.any())]
        if (
            summing
            and len({source for source in self._operands(node) if source in self.data}) > 1
            and len(branches) > 1
        ):
            self.summed.append(labels)
        return labels

    def _joined(self, operands: Sequence[tuple[Tensor, torch.Size, bool]], shape: torch.Size) -> Tensor:
        """Tie the labels that meet. A value that is broadcast along all labelled dimensions is not tied to what it meets."""
        rank = len(shape)
        padded = [
            (each.reshape([1] * (rank - each.dim()) + list(each.shape)), [1] * (rank - len(own)) + list(own), data)
            for each, own, data in operands
        ]
        data = [(each, own) for each, own, is_data in padded if is_data]
        labelled = [each for each, _ in data if bool(each.any())]
        dims = sorted({dim for each in labelled for dim in varying(each)})
        result, meeting = torch.zeros([1] * rank, dtype=torch.long), list[Tensor]()
        if not data:
            for each, _, _ in padded:
                result = self.ties.tie(result, each)
            return compressed(result)  # type: ignore[no-any-return]
        for each, own in data:
            if dims and all(own[dim] == 1 for dim in dims):
                continue
            result = self.ties.tie(result, each)
            meeting.append(each)
        for each in meeting:
            bare = (each == 0) & (result != 0)
            self.ties.lock(torch.where(bare, result, 0), "it meets channels that cannot be removed.")
        for each, own, is_data in padded:
            if not is_data:
                kept = [dim for dim in dims if own[dim] > 1]
                if kept and bool(each.any()):
                    own_labels = self.ties.collapse(each, [dim for dim in range(rank) if dim not in kept])
                    result = self.ties.tie(result, own_labels)
                elif kept:
                    self._lock_met(labelled, "it meets a constant that cannot be cut.")
        return compressed(result)  # type: ignore[no-any-return]

    def _lock_met(self, labelled: Sequence[Tensor], reason: str) -> None:
        for each in labelled:
            self.ties.lock(each, reason)

    def _along_places(self, labels: Tensor, value: Any) -> Any:
        kept = self.ties.collapse(labels, list(range(2, labels.dim())))
        return tree_map_only(Tensor, lambda each: kept.reshape([*kept.shape[:2], *[1] * (each.dim() - 2)]), value)

    def _reduced(self, node: fx.Node, labels: Tensor, value: Any, dims: Sequence[int]) -> Any:
        inside = [dim for dim in varying(labels) if dim in dims]
        outside = [dim for dim in varying(labels) if dim not in dims]
        if inside and not outside:
            name = operation_name(node) if node.op != "call_module" else str(node.target)
            self.ties.lock(labels, f"{name} ({node.name}) is taken over its channels.")
            return tree_map_only(Tensor, no_labels, value)
        labels = self.ties.collapse(labels, inside)

        def shaped(each: Tensor) -> Tensor:
            if each.dim() == labels.dim():
                return labels
            return labels.reshape([size for dim, size in enumerate(labels.shape) if dim not in dims])

        return tree_map_only(Tensor, shaped, value)
