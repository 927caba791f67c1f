"""What class-specific clusters show of images: P of the target layer, and Grad-CAM by clusters."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ...network.images.images import Images
from ...network.network import Network
from ..settings import PicnnSettings
from .cluster_maps import ClusterMaps, cluster_maps
from .membership import Membership, fit_membership, with_membership
from .pathway import Pathway


@dataclass(frozen=True)
class ClusterEvidence:
    """P with the name of the node that gives the target's features, and the maps of the images that are explained (None: there
    are none, or the features have no places). ``trained``: P comes from training, else it was learned post hoc."""

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
    """P and the cluster Grad-CAMs of normalised pictures ``[n, C, H, W]``, each for the class predicted.

    Args:
        calibration: P is learned on these post hoc, with the network as it is, where training left none.
        trained: the file in which training with PICNN's pathway left P.

    Raises:
        InputError: the network cannot be traced or has no target layer, an image has no label, ``trained`` is damaged or
            another network's.
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
