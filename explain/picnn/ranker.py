"""PICNN as a ranking: the loss of a filter's classes without it (Guo et al., AAAI 2024, arXiv:2312.12068)."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ...common.progress import Progress, in_parts, silent
from ...network.graph.feature_points import FeaturePoint
from ...network.graph.target_layer import find_target
from ...network.graph.topology import class_nodes
from ...network.graph.trace import reading_nodes, trace
from ...network.graph.two_parts import masked, pooled
from ...network.hooks import frozen
from ...network.images.images import Images
from ..gap.contributions import Contributions, class_means, contributions
from ..registry import register
from ..scores import LayerScores, RankingTask
from .membership import Membership, fit_membership
from .pathway import Pathway

PASS_BYTES = 2**24
REMOVAL_BYTES = 2**36
"""For all masked features from which filters are removed; above it, fewer images are used."""


@register(
    "picnn",
    summary="PICNN: the loss of a filter's classes without it; earlier layers by their gAP links to it",
    needs="labels",
    unit="nats of the classes' loss, or nats per position",
    source="Guo et al., AAAI 2024; links: Cheng et al., IJCV 131(5), 2023",
)
def score_picnn(task: RankingTask) -> LayerScores:
    """Scores from class-specific clusters of the unchanged network.

    P is learned post hoc on the calibration images. A filter i of the target layer scores ``sum_y p[y, i] * loss_y(i)``: the
    rise of the mean cross-entropy of class y's images when the filter's map is set to zero, weighted by membership, so that a
    filter shared by many classes is not taken for an unnecessary one. A kernel before the target scores by its gAP
    contribution (eqs. 3-4 of Cheng et al., against mean activations, root mean square over images) to the filters of the
    image's class: ``sum_i max(0, p[y, i] * loss_y(i)) * H_i / E|H_i|``. Hidden linear units after the target score by their
    contribution to the class logit. Per class: the terms of the sum, and the links' signed means.

    Raises:
        InputError: the network cannot be traced or has no target layer.
    """
    part = in_parts(task.progress, ("membership", 4), ("removal", 2), ("links", 3), ("behind", 1))
    pathway, membership = _membership(task, part("membership"))
    classes = len(membership.probabilities)
    losses, average, removed_images = removal_losses(
        pathway, task.images, classes, task.batch_size, task.device, part("removal")
    )
    weighted = membership.probabilities * losses
    places = _Places.find(task)
    relative = weighted.clamp(min=0) / torch.where(average > 0, average, 1)
    layers, per_class = _links(task, places, relative.to(task.device), part("links"))
    for layer in places.own:
        layers[layer], per_class[layer] = weighted.sum(0), weighted
    if places.behind:
        whole = contributions(
            task.network, task.images, batch_size=task.batch_size, device=task.device, progress=part("behind")
        )
        for found, more in zip((layers, per_class), _reduced(whole, places.behind), strict=True):
            found.update(more)
    details = {
        "target": places.point.name,
        "links": "gAP contributions to the target's filters, against mean activations",
        "by the links": [layer for layer in layers if layer not in {*places.own, *places.behind}],
        "behind the target, by gAP": places.behind,
        "images": len(task.images),
        "images for the losses": removed_images,
        "filters of each class": torch.bincount(membership.classes_of_filters, minlength=classes).tolist(),
        **{name: value for name, value in asdict(task.picnn).items() if name.startswith("post_hoc")},
    }
    return LayerScores(layers, per_class, details)


def _membership(task: RankingTask, progress: Progress) -> tuple[Pathway, Membership]:
    """P learned post hoc, or read from the task's scratch folder if it exists there."""
    kept = None if task.scratch is None else task.scratch / "membership.safetensors"
    if kept is not None and kept.is_file():
        return Pathway(task.network, task.picnn, task.seed).to(task.device).eval(), Membership.load(kept)
    pathway, membership = fit_membership(
        task.network, task.images, task.picnn, seed=task.seed, device=task.device, progress=progress
    )
    if kept is not None:
        membership.save(kept)
    return pathway, membership


@dataclass(frozen=True)
class _Places:
    """The layers by position: ``own`` output the target's map, ``before`` lie before it (including ``own``), ``behind`` after
    it.
    """

    point: FeaturePoint
    own: list[str]
    before: list[str]
    behind: list[str]

    @classmethod
    def find(cls, task: RankingTask) -> "_Places":
        view = trace(task.network.module, task.network.example())
        point = find_target(view, task.network.example(), task.picnn.target)
        order = {node: index for index, node in enumerate(view.graph.nodes)}
        heads = {str(node.target) for node in class_nodes(view)}
        reading = {layer: nodes for layer, nodes in reading_nodes(view).items() if layer not in heads}
        behind = [layer for layer, nodes in reading.items() if order[nodes[-1]] > order[point.node]]
        own = [layer for layer, nodes in reading.items() if nodes == (point.node,)]
        return cls(point, own, [layer for layer in reading if layer not in behind], behind)


def _links(
    task: RankingTask, places: _Places, weights: Tensor, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """gAP contributions to the target's filters of the image's class, weighted by ``weights``, ``[classes, filters]``."""

    def carried(features: Tensor, labels: Tensor) -> Tensor:
        return (pooled(features) * weights[labels]).sum(1)

    found = contributions(
        task.network,
        task.images,
        objective=carried,
        at=places.point.node,
        batch_size=task.batch_size,
        device=task.device,
        progress=progress,
    )
    return _reduced(found, places.before)


def _reduced(found: Contributions, layers: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    statistic, per_class = found.statistic("root_mean_square", "mean"), found.per_class("mean")
    return {layer: statistic[layer] for layer in layers}, {layer: per_class[layer] for layer in layers}


@torch.no_grad()
def removal_losses(
    pathway: Pathway,
    images: Images,
    classes: int,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Tensor, Tensor, int]:
    """The rise of each class's loss without each filter of the target, by running the head again.

    Returns:
        The rise of the mean cross-entropy over the class's images when the filter's map is zero, in nats, ``[classes,
        filters]`` (zero for a class without images); the filters' mean absolute pooled activations, ``[filters]``; and the
            number of images used, fewer than given if the masked maps of all images exceed ``REMOVAL_BYTES``.
    """
    point = pathway.point
    bytes_a_row = 4 * point.channels * point.height * point.width
    most = max(2 * classes, REMOVAL_BYTES // (bytes_a_row * point.channels))
    images = images.sample(most, 0) if most < len(images) else images
    step = max(1, PASS_BYTES // bytes_a_row)
    rises, sums, done = [], torch.zeros(point.channels, device=device), 0
    with frozen(pathway):
        for batch, labels in images.batches(batch_size):
            features, extra = pathway.parts.trunk(batch.to(device))
            labels = labels.to(device)
            sums += pooled(features).abs().sum(0)
            whole = nn.functional.cross_entropy(pathway.parts.head(features, extra), labels, reduction="none")
            pairs = torch.arange(len(labels) * point.channels, device=device)
            parts = []
            for part in torch.split(pairs, len(labels) * max(1, step // len(labels))):
                filters, rows = part // len(labels), part % len(labels)
                # a multiple of the number of images, so that the head's other inputs match
                mask = 1 - nn.functional.one_hot(filters, point.channels).to(features.dtype)
                scores = _head_in_batches(pathway, masked(features[rows], mask), extra, len(labels))
                parts.append(nn.functional.cross_entropy(scores, labels[rows], reduction="none") - whole[rows])
            rises.append(torch.cat(parts).reshape(point.channels, len(labels)).T.cpu())
            done += len(labels)
            progress(done, len(images))
    return class_means(torch.cat(rises), images.labels, classes), (sums / len(images)).cpu(), len(images)


def _head_in_batches(pathway: Pathway, features: Tensor, extra: tuple[object, ...], size: int) -> Tensor:
    """Class scores of rows, in batches of the number of images if the head has inputs besides the features."""
    if not extra:
        return pathway.parts.head(features)
    return torch.cat([pathway.parts.head(part, extra) for part in torch.split(features, size)])
