"""The entanglement of filters and classes: ACC1, ACC2, ACC3 and the mutual information score (Guo et al. 2024).

ACC1 is the accuracy with all filters, ACC2 with only the filters of one class's cluster, ACC3 with all others; the class is a
pseudo-label, sampled from the network's own prediction. MIS is the mean over filters of
the largest mutual information between a filter's activation and one class.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...common.progress import Progress, silent
from ...network.graph.two_parts import masked, pooled
from ...network.hooks import frozen
from ...network.images.images import Images
from ...network.intervals import Interval, wilson_interval
from .assignments import sample_categorical
from .pathway import Pathway

BOOTSTRAPS = 2000
LEAST_IMAGES = 2
"""The fewest images of a class, and of all others, since the estimate needs a nearest neighbour."""
MOST_PAIRS = 20_000
"""The most pairs of filters and classes whose mutual information is estimated; of more filters, a seeded sample is used."""


@dataclass(frozen=True)
class Share:
    """A share of images in [0, 1] with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Entanglement:
    """The measures of a network's pathway on labelled images.

    ``acc1``, ``acc2`` and ``acc3`` are shares of the images. ``mis`` is in nats with a 95% interval over filters, ``mis_floor``
    is the same with permuted labels (a maximum over noisy estimates is positive), ``mis_ceiling`` the largest value that these
    labels allow; they were computed from ``mis_images`` and ``mis_filters``. ``cluster_share``: the share of filters in the
    sampled clusters.
    """

    target: str
    filters: int
    masks: str
    images: int
    acc1: Share
    acc2: Share
    acc3: Share
    mis: float
    mis_interval: Interval
    mis_floor: float
    mis_ceiling: float
    mis_images: int
    mis_filters: int
    cluster_share: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Entanglement":
        rows = dict(values)
        for name in ("acc1", "acc2", "acc3"):
            rows[name] = Share(**rows[name])
        rows["mis_interval"] = Interval(**rows["mis_interval"])
        return cls(**rows)


@dataclass(frozen=True)
class Predictions:
    """The predictions of both pathways.

    Which images are classified correctly, bool, ``[draws, images]`` for the two with clusters; pooled activations of the
    filters, ``[images, filters]``; the mean share of filters in a cluster; the mean loss with all filters and with clusters, in
    nats."""

    right: Tensor
    cluster_right: Tensor
    complement_right: Tensor
    activations: Tensor
    cluster_share: float
    loss: float
    cluster_loss: float


def predict_pathways(
    pathway: Pathway,
    images: Images,
    *,
    draws: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: str = "cpu",
    progress: Progress = silent,
) -> Predictions:
    """Evaluate both pathways on images, with ``draws`` (by default the settings') seeded pseudo-labels and masks for each.

    ACC3's masks are the complement of ACC2's, or drawn separately, by ``settings.complement``.
    """
    settings, assignment = pathway.settings, pathway.assignment
    draws = settings.draws if draws is None else draws
    generator = torch.Generator(device).manual_seed(seed)
    rows: dict[str, list[Tensor]] = {name: [] for name in ("right", "cluster", "complement", "activations")}
    members = loss = cluster_loss = 0.0
    done = 0
    with torch.no_grad(), frozen(pathway):
        for batch, labels in images.batches(batch_size):
            labels = labels.to(device)
            features, extra = pathway.parts.trunk(batch.to(device))
            scores = pathway.parts.head(features, extra)
            rows["right"].append((scores.argmax(1) == labels).cpu())
            rows["activations"].append(pooled(features).float().cpu())
            loss += float(torch.nn.functional.cross_entropy(scores, labels, reduction="sum"))
            own, others = [], []
            for _ in range(draws):
                clusters = sample_categorical(scores.softmax(1), generator).argmax(1)
                mask = assignment.cluster(clusters, generator)
                opposite = mask if settings.complement == "opposite" else assignment.cluster(clusters, generator)
                by_cluster = pathway.parts.head(masked(features, mask), extra)
                own.append((by_cluster.argmax(1) == labels).cpu())
                others.append((pathway.parts.head(masked(features, 1 - opposite), extra).argmax(1) == labels).cpu())
                members += float(mask.mean(1).sum()) / draws
                cluster_loss += float(torch.nn.functional.cross_entropy(by_cluster, labels, reduction="sum")) / draws
            rows["cluster"].append(torch.stack(own))
            rows["complement"].append(torch.stack(others))
            done += len(labels)
            progress(done, len(images))
    return Predictions(
        torch.cat(rows["right"]),
        torch.cat(rows["cluster"], 1),
        torch.cat(rows["complement"], 1),
        torch.cat(rows["activations"]),
        members / len(images),
        loss / len(images),
        cluster_loss / len(images),
    )


def measure_entanglement(
    pathway: Pathway, images: Images, *, seed: int = 0, device: str = "cpu", progress: Progress = silent
) -> Entanglement:
    """ACC1, ACC2, ACC3 and MIS with their intervals on labelled images.

    ACC1's interval is Wilson's; those of ACC2 and ACC3 are bootstraps over images, each with all its draws.
    """
    found = predict_pathways(pathway, images, seed=seed, device=device, progress=progress)
    right = int(found.right.sum())
    interval = wilson_interval(right, len(images))
    chosen = images.sample(min(pathway.settings.mis_images, len(images)), seed)
    place = {name: index for index, name in enumerate(images.names)}
    rows = torch.tensor([place[name] for name in chosen.names])
    activations, labels = found.activations[rows].numpy(), images.labels[rows].numpy()
    classes = len(set(labels.tolist()))
    filters = np.arange(activations.shape[1])
    if len(filters) * classes > MOST_PAIRS:
        filters = np.random.default_rng(seed).permutation(filters)[: max(16, MOST_PAIRS // classes)]
    activations = activations[:, filters]
    information = mutual_information(activations, labels, seed)
    each = information.max(0)
    permuted = np.random.default_rng(seed).permutation(labels)
    return Entanglement(
        target=pathway.point.name,
        filters=pathway.point.channels,
        masks=pathway.settings.masks,
        images=len(images),
        acc1=Share(right / len(images), interval.low, interval.high),
        acc2=_share(found.cluster_right, seed),
        acc3=_share(found.complement_right, seed),
        mis=float(each.mean()),
        mis_interval=_mean_interval(each, seed),
        mis_floor=float(mutual_information(activations, permuted, seed).max(0).mean()),
        mis_ceiling=max(_entropy(float((labels == label).mean())) for label in set(labels.tolist())),
        mis_images=len(rows),
        mis_filters=len(filters),
        cluster_share=found.cluster_share,
    )


def mutual_information(
    activations: NDArray[np.float32], labels: NDArray[np.int64], seed: int = 0
) -> NDArray[np.float64]:
    """Mutual information in nats between each filter's pooled activation and each class with images, ``[classes, filters]``.

    Uses scikit-learn's nearest-neighbour estimate (Ross, PLoS ONE 9(2), 2014), which is never negative. It is 0 for a constant
    filter, and for a class with one image.

    Args:
        activations: ``[images, filters]``.
        labels: ``[images]``.
    """
    from sklearn.feature_selection import mutual_info_classif

    alive = np.ptp(activations, axis=0) > 0
    rows = []
    for label in sorted(set(labels.tolist())):
        row = np.zeros(activations.shape[1])
        inside = int((labels == label).sum())
        if alive.any() and LEAST_IMAGES <= inside <= len(labels) - LEAST_IMAGES:
            row[alive] = mutual_info_classif(activations[:, alive], labels == label, random_state=seed)
        rows.append(row)
    return np.stack(rows)


def _share(right: Tensor, seed: int) -> Share:
    """The mean over draws and images, with a bootstrap interval over images."""
    each = right.double().mean(0).numpy()
    interval = _mean_interval(each, seed)
    return Share(float(each.mean()), interval.low, interval.high)


def _mean_interval(values: NDArray[np.float64], seed: int) -> Interval:
    """Percentile bootstrap 95% interval of a mean."""
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [values[generator.integers(0, len(values), size=(100, len(values)))].mean(1) for _ in range(BOOTSTRAPS // 100)]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(low), float(high))


def _entropy(share: float) -> float:
    parts = np.array([share, 1 - share])
    parts = parts[parts > 0]
    return float(-(parts * np.log(parts)).sum())
