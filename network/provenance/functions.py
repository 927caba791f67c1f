"""Labels through calls of functions and methods: moves, sums, products and attention, and trials of what is unknown."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from .contractions import Factor, contracted, matmul_equation
from .layers import Layers
from .moves import compressed, moved, spread, varying
from .operations import ALONG_PLACES, ELEMENTWISE, REDUCTIONS, operation_name, option, reduced_dims
from .parts import no_labels
from .trial import keeps_channels


class Functions(Layers):
    """Rules for functions and methods."""

    def _through_function(self, node: fx.Node, value: Any) -> Any:
        name = operation_name(node)
        sources = self._operands(node)
        first = next((source for source in sources if source in self.data), sources[0])
        labels = self.of[first]
        if not isinstance(labels, Tensor):
            return None
        if name in ("max", "min") and isinstance(option(node, 1, "other"), fx.Node):
            name = "maximum"
        if name in ELEMENTWISE:
            return self._elementwise(node, value)
        if name in ALONG_PLACES:
            return self._along_places(labels, value)
        if name in REDUCTIONS:
            return self._reduced(node, labels, value, reduced_dims(node, labels.dim()))
        if name in ("matmul", "bmm", "mm", "matmul_", "imatmul"):
            one, other = (self._factor(each) for each in node.args[:2])
            if min(len(one.shape), len(other.shape)) < 2:
                return None
            equation = matmul_equation(len(one.shape), len(other.shape))
            return contracted(self.ties, equation, [one, other], node.name)
        if name == "einsum":
            return self._einsum(node)
        if name == "scaled_dot_product_attention":
            return self._attention(node, value)
        return None

    def _factor(self, node: Any) -> Factor:
        return Factor(self.of[node], self.values[node].shape, node in self.data)

    def _einsum(self, node: fx.Node) -> Any:
        equation = node.args[0]
        if not isinstance(equation, str) or "." in equation or "->" not in equation:
            return None
        given = node.args[1] if isinstance(node.args[1], list | tuple) else node.args[1:]
        factors = [self._factor(each) for each in given]
        return contracted(self.ties, equation.replace(" ", ""), factors, node.name)

    def _attention(self, node: fx.Node, value: Tensor) -> Tensor | None:
        """softmax(q k^T + mask) v."""
        query, key, values = (
            self._factor(option(node, place, name)) for place, name in enumerate(("query", "key", "value"))
        )
        rank = value.dim()
        if not all(len(factor.shape) == rank for factor in (query, key, values)):
            return None
        batch = "abcdefgh"[: rank - 2]
        scores = contracted(self.ties, f"{batch}nk,{batch}mk->{batch}nm", [query, key], node.name)
        mask = option(node, 3, "attn_mask")
        shape = torch.Size((*value.shape[:-1], key.shape[-2]))
        if isinstance(mask, fx.Node) and self.of.get(mask) is not None:
            scores = self._joined(
                [(scores, shape, True), (self.of[mask], self.values[mask].shape, mask in self.data)], shape
            )
        if rank - 1 in varying(scores):
            self.ties.lock(scores, f"the attention {node.name} is over its channels.")
        return contracted(
            self.ties, f"{batch}nm,{batch}mk->{batch}nk", [Factor(scores, shape, True), values], node.name
        )

    def _tried(self, node: fx.Node, module: nn.Module | None, value: Any) -> Any:
        """Try an unknown operation by changing one channel after the other; what it mixes is locked."""
        what = (
            f"{node.target} ({type(module).__name__})"
            if module is not None
            else f"{operation_name(node)} ({node.name})"
        )
        sources = [source for source in self._operands(node) if source in self.data]
        labels = self.of[sources[0]] if len(sources) == 1 else None
        if isinstance(labels, Tensor) and isinstance(value, Tensor):
            dims, own = varying(labels), self.values[sources[0]]
            same = len(dims) == 1 and value.dim() > dims[0] and value.shape[dims[0]] == own.shape[dims[0]]
            if same and keeps_channels(self.view, node, sources[0], self.values, dims[0]):
                return labels.reshape([-1 if dim == dims[0] else 1 for dim in range(value.dim())])
        self._lock_operands(node, f"its channels pass through {what}, where they may be mixed.")
        return tree_map_only(Tensor, no_labels, value)

    def _moved(self, node: fx.Node, module: nn.Module | None) -> Any:
        def read(source: fx.Node) -> Any:
            flat, spec = tree_flatten(self.values[source])
            labels = tree_flatten(self.of[source])[0]
            return spec.unflatten([spread(each, own.shape) for each, own in zip(labels, flat, strict=True)])

        try:
            return compressed(moved(node, module, read, self.values.__getitem__))
        except Exception:  # an operation may refuse float64, or what is not contiguous
            return self._tried(node, module, self.values[node])
