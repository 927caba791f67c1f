"""The membership of a target layer's filters in class-specific clusters, saved or learned post hoc with a frozen network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import InputError
from ...common.files import replacing
from ...common.progress import Progress, silent
from ...network.hooks import frozen, seeded
from ...network.images.images import Images
from ...network.network import Network
from ..settings import PicnnSettings
from .pathway import Pathway

FEATURE_BYTES = 2**31
LEAST_PROBABILITY = 1e-8


@dataclass(frozen=True)
class Membership:
    """The filter-class correspondence matrix of one layer.

    ``probabilities`` is P, float32 ``[classes, filters]``: the degree to which each filter belongs to each class's cluster.
    ``masks`` names the kind of assignment, ``target`` the layer.
    """

    target: str
    masks: str
    probabilities: Tensor
    class_names: Sequence[str]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes_of_filters(self) -> Tensor:
        """The class that each filter belongs to most, int64 ``[filters]``."""
        return self.probabilities.argmax(0)

    def cluster(self, label: int) -> Tensor:
        """The filters that belong to a class more than to any other, int64 ``[members]``; a class may have none."""
        return (self.classes_of_filters == label).nonzero().flatten()

    def save(self, path: Path) -> None:
        """Write as safetensors; equal matrices give equal bytes."""
        from safetensors.torch import save

        about = {
            "target": self.target,
            "masks": self.masks,
            "class_names": list(self.class_names),
            "details": dict(self.details),
        }
        metadata = {"secateur_membership": json.dumps(about, sort_keys=True)}
        with replacing(path) as temporary:
            temporary.write_bytes(save({"probabilities": self.probabilities.float().contiguous()}, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> "Membership":
        """Load a membership that :meth:`save` wrote.

        Raises:
            InputError: the file is missing, damaged, or not a membership.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise InputError(f"The membership {path} does not exist. Run `secateur train-picnn` first.")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["secateur_membership"])
                probabilities = file.get_tensor("probabilities")
            return cls(about["target"], about["masks"], probabilities, tuple(about["class_names"]), about["details"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} holds no membership that secateur can read ({error}). Run the command that writes it again."
            ) from error


def membership_of(pathway: Pathway, network: Network, details: Mapping[str, Any] | None = None) -> Membership:
    """The current assignment of a pathway."""
    probabilities = pathway.assignment.probabilities.detach().float().cpu().clone()
    names = network.class_names or tuple(f"class {index}" for index in range(len(probabilities)))
    return Membership(pathway.point.name, pathway.settings.masks, probabilities, names, details or {})


def fit_membership(
    network: Network,
    images: Images,
    settings: PicnnSettings | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Pathway, Membership]:
    """Learn P alone: trunk and head of the network are frozen, and features are computed once.

    Uses Adam at ``post_hoc_rate`` with a cosine schedule to zero for ``post_hoc_steps`` batches. The loss is ``H(y, y2)``, the
    only term that depends on P. Features that do not fit into ``FEATURE_BYTES`` are recomputed for each batch.

    Returns:
        The pathway around a copy of the network, and its membership.

    Raises:
        InputError: the network cannot be traced or has no target layer; an image has no label.
    """
    settings = settings or PicnnSettings()
    if not len(images) or int(images.labels.min()) < 0:
        raise InputError(
            "Learning the membership needs images with labels. Label them, or use the network's predictions."
        )
    pathway = Pathway(network, settings, seed).to(device)
    details = {"post hoc": True, "images": len(images), "steps": settings.post_hoc_steps, "seed": seed}
    if not pathway.assignment.learned:
        return pathway, membership_of(pathway, network, details)
    with frozen(pathway.parts), seeded(seed), torch.enable_grad():
        batches = _FeatureBatches(pathway, images, settings.batch_size, device)
        optimizer = torch.optim.Adam(pathway.assignment.parameters(), lr=settings.post_hoc_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.post_hoc_steps))
        generator = torch.Generator().manual_seed(seed)
        order = torch.empty(0, dtype=torch.long)
        for step in range(settings.post_hoc_steps):
            if not len(order):
                order = torch.randperm(len(images), generator=generator)
            rows, order = order[: settings.batch_size], order[settings.batch_size :]
            features, extra, scores, labels = batches.of(rows)
            output = pathway.through_clusters(features, extra, scores, pathway.classes_for(labels))
            loss = pathway.interpretation_loss(output, labels) + pathway.assignment.penalty()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            pathway.assignment.project()
            schedule.step()
            progress(step + 1, settings.post_hoc_steps)
    return pathway.eval(), membership_of(pathway, network, details)


class _FeatureBatches:
    """Features and class scores of images, cached if they fit into memory and recomputed for each batch otherwise."""

    def __init__(self, pathway: Pathway, images: Images, batch_size: int, device: str) -> None:
        self._parts, self._images, self._device = pathway.parts, images, device
        self._labels = images.labels.to(device)
        self._kept: tuple[Tensor, Tensor] | None = None
        point = pathway.point
        size = 4 * len(images) * point.channels * point.height * point.width
        if not pathway.parts.has_extra and size <= FEATURE_BYTES:
            with torch.no_grad():
                found = [self._parts.trunk(batch.to(device))[0] for batch, _ in images.batches(batch_size)]
                scores = [self._parts.head(features) for features in found]
            self._kept = torch.cat(found), torch.cat(scores)

    def of(self, rows: Tensor) -> tuple[Tensor, tuple[Any, ...], Tensor, Tensor]:
        """Features, the head's other inputs, class scores and labels of some images."""
        labels = self._labels[rows.to(self._device)]
        if self._kept is not None:
            features, scores = (kept[rows.to(self._device)] for kept in self._kept)
            return features, (), scores, labels
        with torch.no_grad():
            ((batch, _),) = self._images.batches(len(rows), rows)
            features, extra = self._parts.trunk(batch.to(self._device))
            return features, extra, self._parts.head(features, extra), labels


def with_membership(network: Network, settings: PicnnSettings, membership: Membership, seed: int = 0) -> Pathway:
    """A pathway around a copy of the network, with the assignment of a membership.

    Raises:
        InputError: the network cannot be traced, or the membership's layer, kind of masks, filters or classes differ from
            those of the settings and the target.
    """
    pathway = Pathway(network, settings, seed)
    own, given = pathway.assignment, membership.probabilities
    if (membership.target, membership.masks) != (pathway.point.name, settings.masks):
        raise InputError(
            f"The membership is of {membership.target} by {membership.masks} masks; expected {pathway.point.name} by "
            f"{settings.masks}. Use the membership of this network."
        )
    if given.shape != own.probabilities.shape:
        raise InputError(
            f"The membership has {given.shape[0]} classes and {given.shape[1]} filters, {pathway.point.name} has "
            f"{own.probabilities.shape[0]} and {own.probabilities.shape[1]}. Use the membership of this network."
        )
    with torch.no_grad():
        for parameter in own.parameters():  # a softmax of logarithms gives the probabilities again
            parameter.copy_(given if settings.masks == "csg" else given.clamp(min=LEAST_PROBABILITY).log())
    return pathway.eval()
