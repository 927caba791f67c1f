"""Differentiable masks that keep a share of the kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_KEPT, MOST_KEPT = 0.1, 0.9
KEEP_RATES = tuple(rate / 10 for rate in range(1, 10))
HALVINGS = 40


def keep_masks(scores: Tensor, rates: Tensor, sizes: Sequence[int], temperature: float) -> Tensor:
    """``a_v(r) = sigmoid((s_v - tau_l(r)) / T)`` with ``tau`` such that its mean over each layer is ``r``.

    ``tau`` is found by bisection; one Newton step, zero at the solution, carries its exact gradient
    ``d tau / d s_v = a_v (1 - a_v) / sum_u a_u (1 - a_u)``.

    Args:
        scores: ``[graphs, nodes]``, the layers concatenated.
        rates: ``r`` of each graph, ``[graphs]``, within (0, 1).
        sizes: the number of nodes of each layer.
        temperature: ``T``.
    """
    segments = torch.arange(len(sizes), device=scores.device).repeat_interleave(
        torch.tensor(sizes, device=scores.device)
    )
    counts = torch.tensor(sizes, device=scores.device, dtype=scores.dtype)
    index = segments.expand_as(scores)

    def layer_sums(values: Tensor) -> Tensor:
        return values.new_zeros(len(values), len(sizes)).scatter_add(1, index, values)

    def masks(thresholds: Tensor) -> Tensor:
        return torch.sigmoid((scores - thresholds.gather(1, index)) / temperature)

    wanted = rates.unsqueeze(1)
    with torch.no_grad():
        # With tau at the layer's least score, moved by T logit(r), no a is below r; at its largest none is above.
        shift = temperature * torch.logit(wanted)
        empty = scores.new_zeros(len(scores), len(sizes))
        low = empty.scatter_reduce(1, index, scores, "amin", include_self=False) - shift
        high = empty.scatter_reduce(1, index, scores, "amax", include_self=False) - shift
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = layer_sums(masks(middle)) / counts > wanted
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        thresholds = (low + high) / 2
    kept = masks(thresholds)
    slopes = layer_sums((kept * (1 - kept)).detach()).clamp(min=torch.finfo(scores.dtype).tiny)
    total = layer_sums(kept)
    return masks(thresholds + temperature * (total - total.detach()) / slopes)
