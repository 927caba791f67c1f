"""Labels through products that sum over dimensions: ``matmul``, ``einsum`` and attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .moves import compressed, varying
from .ties import Ties


@dataclass(frozen=True)
class Factor:
    """A factor of a product: its labels, the shape of its value, and whether it depends on the image."""

    labels: Tensor
    shape: torch.Size
    data: bool


def contracted(ties: Ties, equation: str, factors: Sequence[Factor], name: str) -> Tensor:
    """The labels of a product by an equation of ``torch.einsum`` without ellipsis; ``name`` is for the reasons of locks.

    A letter of the result that several factors have is a batch: its labels are tied. A letter that is summed over ties the
    channels that meet. A factor with labels along several letters keeps those along a batch, if there is one: the heads of an
    attention.
    """
    terms, result = equation.split("->")
    letters = terms.split(",")
    along, whole = _along_letters(ties, letters, result, factors)
    carried: dict[str, Tensor] = {}
    for letter, found in along.items():
        vector = found[0][1]
        for _, other in found[1:]:
            vector = ties.tie(vector, other)
        labelled = [factor for factor, _ in found]
        bare = [
            factor
            for term, factor in zip(letters, factors, strict=True)
            if letter in term
            and factor.shape[term.index(letter)] > 1
            and not any(factor is other for other in labelled)
        ]
        if bare:
            ties.lock(vector, f"its channels are multiplied with others in {name}.")
        elif letter in result:
            carried[letter] = vector
    for vector in whole:
        for letter, own in carried.items():
            carried[letter] = ties.tie(own, vector)
    if len(carried) > 1:
        for vector in carried.values():
            ties.lock(vector, f"pairs of its channels are multiplied in {name}.")
        carried = {}
    labels = torch.zeros([1] * len(result), dtype=torch.long)
    for vector in [] if carried else whole:
        labels = ties.tie(labels, vector.reshape([1] * len(result)))
    for letter, vector in carried.items():
        labels = vector.reshape([-1 if other == letter else 1 for other in result])
    return compressed(labels)  # type: ignore[no-any-return]


Vectors = dict[str, list[tuple[Factor, Tensor]]]


def _along_letters(
    ties: Ties, letters: Sequence[str], result: str, factors: Sequence[Factor]
) -> tuple[Vectors, list[Tensor]]:
    """For every letter the factors with labels along it, and these labels; and the labels of factors that have one for all.

    A constant has elements along every letter: it takes part along those that data have labels along.
    """
    batch = [letter for letter in result if sum(letter in term for term in letters) > 1]
    along: Vectors = {}
    whole: list[Tensor] = []
    for term, factor in zip(letters, factors, strict=True):
        dims = varying(factor.labels)
        if not dims:
            if factor.data and bool(factor.labels.any()) and any(size > 1 for size in factor.shape):
                whole.append(factor.labels.flatten())
        elif factor.data or len(dims) == 1:
            kept = next((dim for dim in dims if term[dim] in batch), dims[0])
            vector = ties.collapse(factor.labels, [dim for dim in dims if dim != kept]).flatten()
            along.setdefault(term[kept], []).append((factor, vector))
    for term, factor in zip(letters, factors, strict=True):
        dims = varying(factor.labels)
        wanted = [dim for dim in dims if term[dim] in along]
        if not factor.data and len(dims) > 1 and wanted:
            vector = ties.collapse(factor.labels, [other for other in dims if other != wanted[0]]).flatten()
            along[term[wanted[0]]].append((factor, vector))
    return along, whole


def matmul_equation(first: int, second: int) -> str:
    """The equation of ``torch.matmul`` for factors of these ranks, at least 2."""
    rank = max(first, second) - 2
    batch = "abcdefgh"[:rank]
    return f"{batch[rank - first + 2 :]}nk,{batch[rank - second + 2 :]}km->{batch}nm"
