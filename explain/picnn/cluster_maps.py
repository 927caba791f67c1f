"""Visualise class-specific clusters: P of the target layer, and Grad-CAM by all filters, by a class's cluster and by its
complement (Guo et al. 2024, figure 7; Selvaraju et al., ICCV 2017)."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ...common.errors import InputError
from ...network.hooks import frozen
from ...network.images.images import Images
from ...network.network import Network
from ..settings import PicnnSettings
from .membership import Membership, fit_membership, with_membership
from .pathway import Pathway


@dataclass(frozen=True)
class ClusterMaps:
    """Grad-CAM maps of images for one class each, ``[n, h, w]`` in logits per position, never negative."""

    whole: Tensor
    cluster: Tensor
    complement: Tensor
    classes: Tensor


def cluster_maps(
    pathway: Pathway, membership: Membership, images: Tensor, classes: Tensor | None = None
) -> ClusterMaps:
    """Grad-CAM at the target layer: ``relu(sum_i w_i H_i)`` with ``w_i`` the mean over positions of ``d logit / d H_i``.

    The weights are those of the whole network; the sum runs over all filters, over those that belong to the class more than
    to any other, and over the others. Before the ReLU, the second and third sum to the first.

    Args:
        images: normalised, ``[n, C, H, W]``.
        classes: int64 ``[n]``; the predicted ones if None.

    Raises:
        InputError: the target layer's features have no positions.
    """
    with frozen(pathway.parts):
        with torch.no_grad():
            features, extra = pathway.parts.trunk(images)
        if features.dim() != 4:
            raise InputError(f"{pathway.point.name} outputs features without positions, so there is no map to draw.")
        features.requires_grad_(True)
        with torch.enable_grad():
            scores = pathway.parts.head(features, extra)
            chosen = scores.argmax(1) if classes is None else classes.to(scores.device)
            (gradient,) = torch.autograd.grad(scores.gather(1, chosen.unsqueeze(1)).sum(), features)
    parts = (gradient.mean((2, 3), keepdim=True) * features).detach()
    own = (membership.classes_of_filters.to(chosen.device).unsqueeze(0) == chosen.unsqueeze(1)).to(parts.dtype)
    inside = torch.einsum("nfhw,nf->nhw", parts, own)
    whole = parts.sum(1)
    return ClusterMaps(whole.relu(), inside.relu(), (whole - inside).relu(), chosen.cpu())


@dataclass(frozen=True)
class ClusterEvidence:
    """P, the node that outputs the target's features, and the maps of the explained images.

    The maps are None without images, or if the features have no positions. ``trained``: P comes from training; otherwise it was
    learned post hoc."""

    membership: Membership
    node: str
    maps: ClusterMaps | None
    trained: bool


def explain_clusters(
    network: Network,
    calibration: Images,
    pictures: Tensor,
    settings: PicnnSettings,
    *,
    trained: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> ClusterEvidence:
    """P and the cluster Grad-CAMs of normalised pictures ``[n, C, H, W]``, each for the predicted class.

    Args:
        calibration: images to learn P on post hoc, with the network frozen, if training left none.
        trained: the file with P from training with PICNN's pathway.

    Raises:
        InputError: the network cannot be traced or has no target layer, an image has no label, or ``trained`` is damaged or
            from another network.
    """
    pathway: Pathway
    if trained is not None:
        membership = Membership.load(trained)
        own = replace(settings, target=membership.target, masks=membership.masks)
        pathway = with_membership(network, own, membership, seed).to(device)
    else:
        pathway, membership = fit_membership(network, calibration, settings, seed=seed, device=device)
    drawn = len(pictures) > 0 and pathway.point.height * pathway.point.width > 1
    maps = cluster_maps(pathway, membership, pictures.to(device)) if drawn else None
    return ClusterEvidence(membership, pathway.point.node.name, maps, trained is not None)
