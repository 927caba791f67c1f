"""Which kernels contribute most to a decision, kernels with much the same map counted once."""

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 16  # kernels compared with each other before all of them are


@dataclass(frozen=True)
class Selection:
    """How many kernels are kept for a decision, and which count as the same.

    Maps are near-duplicates where their parts above ``threshold`` times their maximum overlap by more than ``overlap``
    (intersection over union). The paper gives 3 and 0.9 and leaves the threshold open.
    """

    top: int = 3
    overlap: float = 0.9
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top must be at least 1 (got {self.top})")
        if not (0 < self.overlap <= 1 and 0 <= self.threshold < 1):
            raise ValueError("overlap must be above 0 and at most 1, threshold at least 0 and below 1")


def strongest(alpha: Tensor, maps: Tensor, selection: Selection) -> tuple[Tensor, list[list[tuple[int, ...]]]]:
    """The kernels that contribute most to each decision, near-duplicates merged by non-maximum suppression in order of alpha.

    Args:
        alpha: contributions, ``[rows, C]``; only positive ones support a decision.
        maps: activation maps, ``[rows, C, H, W]``.
        selection: how many, and what counts as the same.

    Returns:
        The kernels kept, int64 ``[rows, top]``, -1 where there are no more; for each the kernels merged into it, of the
        ``CANDIDATES`` strongest (four times ``top``, if that is more), or of all where these do not give ``top``.
    """
    order = alpha.argsort(dim=1, descending=True, stable=True)
    seen = min(alpha.shape[1], max(CANDIDATES, 4 * selection.top))
    kernels, merged = _choose(alpha, maps, order[:, :seen], selection)
    short = (kernels[:, -1] < 0) & (alpha.gather(1, order[:, seen - 1 : seen])[:, 0] > 0)
    if seen < alpha.shape[1] and bool(short.any()):
        kernels[short], lists = _choose(alpha[short], maps[short], order[short], selection)
        for row, own in zip(short.nonzero().flatten().tolist(), lists, strict=True):
            merged[row] = own
    return kernels, merged


def _choose(
    alpha: Tensor, maps: Tensor, candidates: Tensor, selection: Selection
) -> tuple[Tensor, list[list[tuple[int, ...]]]]:
    kept = _suppress(alpha.gather(1, candidates), maps, candidates, selection)
    is_kept = kept.diagonal(dim1=1, dim2=2)
    place = is_kept.cumsum(1) - 1
    kernels = torch.full((len(alpha), selection.top), -1, dtype=torch.int64, device=alpha.device)
    row, column = (is_kept & (place < selection.top)).nonzero(as_tuple=True)
    kernels[row, place[row, column]] = candidates[row, column]
    merged: list[list[tuple[int, ...]]] = [[()] * selection.top for _ in range(len(alpha))]
    into = kept.int().argmax(2)
    for index, candidate in (kept.any(2) & ~is_kept).nonzero().tolist():
        keeper = int(place[index, into[index, candidate]])
        if keeper < selection.top:
            merged[index][keeper] += (int(candidates[index, candidate]),)
    return kernels, merged


def _suppress(alpha: Tensor, maps: Tensor, candidates: Tensor, selection: Selection) -> Tensor:
    """For each candidate in order of alpha which one stands for it, bool ``[rows, candidates, candidates]``.

    On the diagonal those that stand for themselves: kept. All False where alpha is not positive.
    """
    own = maps.gather(1, candidates[:, :, None, None].expand(-1, -1, *maps.shape[2:])).flatten(2)
    masks = (own > selection.threshold * own.amax(2, keepdim=True).clamp(min=0)).float()
    shared = masks @ masks.transpose(1, 2)
    sizes = masks.sum(2)
    union = sizes.unsqueeze(1) + sizes.unsqueeze(2) - shared
    alike = shared > selection.overlap * union
    stands = torch.zeros_like(alike)
    for candidate in range(alpha.shape[1]):
        kept = stands.diagonal(dim1=1, dim2=2)[:, :candidate]
        over = kept & alike[:, candidate, :candidate]
        first = over & (over.cumsum(1) == 1)
        positive = alpha[:, candidate] > 0
        stands[:, candidate, :candidate] = first & positive.unsqueeze(1)
        stands[:, candidate, candidate] = positive & ~over.any(1)
    return stands
