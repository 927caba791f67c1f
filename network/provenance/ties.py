"""Which labels belong together: ties collected while labels are followed, and resolved once."""

import torch
from torch import Tensor

from .moves import compressed

_MOST = 2**31
"""More than labels are ever handed out."""


class Ties:
    """Labels handed out, the ties between them, and the reasons why some must stay."""

    def __init__(self) -> None:
        self._next = 1
        self._pairs: list[Tensor] = []
        self._reasons: list[tuple[Tensor, str]] = []
        self._component: Tensor | None = None

    def fresh(self, count: int) -> Tensor:
        """``count`` new labels, int64 ``[count]``."""
        start, self._next = self._next, self._next + count
        return torch.arange(start, start + count)

    def tie(self, first: Tensor, second: Tensor) -> Tensor:
        """Tie labels place by place, broadcast; 0 is no label. Returns one label for every place."""
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
        first, second = first.expand(shape), second.expand(shape)
        both = (first != 0) & (second != 0) & (first != second)
        if bool(both.any()):
            pairs = torch.unique(first[both] * _MOST + second[both])
            self._pairs.append(torch.stack([pairs // _MOST, pairs % _MOST]))
        return torch.where(first != 0, first, second)

    def collapse(self, labels: Tensor, dims: list[int]) -> Tensor:
        """Tie all labels along dimensions, which are left with size 1."""
        for dim in dims:
            if labels.shape[dim] > 1:
                representative = labels.amax(dim, keepdim=True)
                self.tie(labels, representative)
                labels = representative
        return labels

    def lock(self, labels: Tensor, reason: str) -> None:
        """Nothing with one of these labels may be removed."""
        found = labels[labels != 0]
        if len(found):
            self._reasons.append((torch.unique(found), reason))

    def resolve(self) -> None:
        """Find what is tied together; ties made later need another call."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        size = self._next
        if self._pairs:
            pairs = torch.cat(self._pairs, 1)
            self._pairs = [pairs]
            first, second = pairs.numpy()
        else:
            first = second = torch.zeros(0, dtype=torch.long).numpy()
        graph = coo_matrix((torch.ones(len(first)).numpy(), (first, second)), shape=(size, size))
        _, component = connected_components(graph, directed=False)
        tied = torch.from_numpy(component).long()
        least = torch.full((int(tied.max()) + 1,), size).scatter_reduce(0, tied, torch.arange(size), "amin")
        self._component = least[tied]

    def resolved(self, labels: Tensor) -> Tensor:
        """For every label the least that is tied to it; 0 stays 0."""
        assert self._component is not None
        return compressed(self._component[labels])  # type: ignore[no-any-return]

    def locked(self) -> dict[int, str]:
        """The first reason for every resolved label that must stay."""
        assert self._component is not None
        found: dict[int, str] = {}
        for labels, reason in self._reasons:
            for label in torch.unique(self._component[labels]).tolist():
                found.setdefault(label, reason)
        return found
