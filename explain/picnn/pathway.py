"""PICNN's two pathways through one network (Guo et al., AAAI 2024, arXiv:2312.12068).

The discrimination pathway is the network itself: all filters of the target layer, class scores y1. The interpretation pathway
passes only the filters of one class's cluster through the same head: y2. The class is a pseudo-label sampled from softmax(y1),
so that y2 does not depend on the label. Loss: ``H(y, y1) + lambda H(y, y2)`` (eqs. 1-3).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...network.graph.feature_points import FeaturePoint
from ...network.graph.target_layer import find_target
from ...network.graph.trace import trace
from ...network.graph.two_parts import TwoParts, keeping_statistics, masked
from ...network.network import Network
from ..settings import PicnnSettings
from .assignments import Assignment, make_assignment, sample_categorical


class PathwayScores(NamedTuple):
    """Class scores of a batch with all filters and with the clusters, ``[n, classes]``, and the classes of the clusters, int64
    ``[n]``.
    """

    scores: Tensor
    cluster_scores: Tensor
    clusters_of: Tensor


class Pathway(nn.Module):
    """A network with an assignment of its target layer's filters to classes, to be trained together.

    ``parts`` is a traced copy of the network; the given network is not changed. ``point`` is the target.

    Raises:
        InputError: the network cannot be traced, has no target layer, or does not have the named one.
    """

    def __init__(self, network: Network, settings: PicnnSettings, seed: int = 0) -> None:
        super().__init__()
        view = trace(network.module, network.example()).requires_grad_(True)
        self.settings = settings
        self.point: FeaturePoint = find_target(view, network.example(), settings.target)
        self.parts = TwoParts(view, self.point.node)
        with torch.no_grad():
            classes = self.parts(network.example()).shape[1]
        self.assignment: Assignment = make_assignment(
            settings.masks,
            classes,
            self.point.channels,
            initial=settings.initial,
            gate_penalty=settings.gate_penalty,
            seed=seed,
        )
        self.assignment.requires_grad_(self.assignment.learned)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> PathwayScores:
        """Run both pathways.

        Args:
            images: normalised, ``[n, C, H, W]``.
            labels: use the clusters of these classes instead of pseudo-labels, ``[n]``.
        """
        features, extra = self.parts.trunk(images)
        scores = self.parts.head(features, extra)
        if not self.assignment.learned:
            return PathwayScores(scores, scores, scores.argmax(1))
        return self.through_clusters(features, extra, scores, labels)

    def through_clusters(
        self, features: Tensor, extra: tuple[object, ...], scores: Tensor, labels: Tensor | None
    ) -> PathwayScores:
        """The interpretation pathway for features ``[n, filters, …]`` whose class scores are known."""
        if labels is None:
            classes = sample_categorical(scores.softmax(1))
        else:
            classes = F.one_hot(labels, scores.shape[1]).to(scores.dtype)
        mask = self.assignment.training_mask(classes)
        with keeping_statistics(self.parts):
            cluster_scores = self.parts.head(masked(features, mask), extra)
        return PathwayScores(scores, cluster_scores, classes.detach().argmax(1))

    def objective(
        self,
        discriminate: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda scores, _images, labels: F.cross_entropy(
            scores, labels
        ),
    ) -> Callable[[PathwayScores, Tensor, Tensor], Tensor]:
        """The loss of both pathways in the form that ``network.training.train`` expects.

        Args:
            discriminate: the discrimination pathway's loss of (scores, images, labels).
        """

        def loss(output: PathwayScores, images: Tensor, labels: Tensor) -> Tensor:
            value = discriminate(output.scores, images, labels)
            if self.assignment.learned:
                value = (
                    value + self.settings.weight * self.interpretation_loss(output, labels) + self.assignment.penalty()
                )
            return value

        return loss

    def interpretation_loss(self, output: PathwayScores, labels: Tensor) -> Tensor:
        """``H(y, y2)`` (eq. 2) over all images, or over those with a correct pseudo-label."""
        each = F.cross_entropy(output.cluster_scores, labels, reduction="none")
        if self.settings.loss_over == "all":
            return each.mean()
        right = (output.clusters_of == labels).to(each.dtype)
        return (each * right).sum() / right.sum().clamp(min=1)

    def classes_for(self, labels: Tensor) -> Tensor | None:
        """The classes whose clusters are used in training: None for pseudo-labels."""
        return labels if self.settings.labels == "true" or self.settings.masks == "csg" else None
