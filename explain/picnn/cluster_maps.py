"""Grad-CAM by all filters, by a class's cluster, by its complement (Guo et al. 2024, figure 7; Selvaraju et al., ICCV 2017)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.errors import InputError
from ...network.hooks import frozen
from .membership import Membership
from .pathway import Pathway


@dataclass(frozen=True)
class ClusterMaps:
    """Grad-CAM maps of images for one class each, ``[n, h, w]`` in logits per place, never below zero."""

    whole: Tensor
    cluster: Tensor
    complement: Tensor
    classes: Tensor


def cluster_maps(
    pathway: Pathway, membership: Membership, images: Tensor, classes: Tensor | None = None
) -> ClusterMaps:
    """Grad-CAM at the target layer: ``relu(sum_i w_i H_i)`` with ``w_i`` the mean over places of ``d logit / d H_i``.

    The weights are those of the whole network; the sum runs over all filters, over those that belong to the class more than
    to any other, and over the others, so that before the ReLU the second and third add up to the first.

    Args:
        images: normalised, ``[n, C, H, W]``.
        classes: int64 ``[n]``; the predicted ones, if None.

    Raises:
        InputError: the target layer's features have no places.
    """
    with frozen(pathway.parts):
        with torch.no_grad():
            features, beside = pathway.parts.trunk(images)
        if features.dim() != 4:
            raise InputError(f"{pathway.point.name} gives features without places, so there is no map to draw.")
        features.requires_grad_(True)
        with torch.enable_grad():
            scores = pathway.parts.head(features, beside)
            chosen = scores.argmax(1) if classes is None else classes.to(scores.device)
            (gradient,) = torch.autograd.grad(scores.gather(1, chosen.unsqueeze(1)).sum(), features)
    parts = (gradient.mean((2, 3), keepdim=True) * features).detach()
    own = (membership.classes_of_filters.to(chosen.device).unsqueeze(0) == chosen.unsqueeze(1)).to(parts.dtype)
    inside = torch.einsum("nfhw,nf->nhw", parts, own)
    whole = parts.sum(1)
    return ClusterMaps(whole.relu(), inside.relu(), (whole - inside).relu(), chosen.cpu())
