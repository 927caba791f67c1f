"""The training, validation and test images of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...common.errors import InputError
from ...common.files import sha256_json
from .images import Images
from .sampling import stratified_split


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set.

    ``listing_sha256`` hashes the names and labels (null for images without) of all three. ``notes`` are for the report.
    ``class_names`` is empty if no split has labels, until ``match_classes`` sets it.
    """

    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    listing_sha256: str
    notes: tuple[str, ...] = ()

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """The splits among ``train``, ``validation`` and ``test`` that came without labels."""
        return tuple(name for name in ("train", "validation", "test") if not getattr(self, name).labelled)


@dataclass(frozen=True)
class Found:
    """Images before validation images are split off: ``train``, ``test`` and, if there is one, ``val``."""

    parts: dict[str, Images]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def carve_validation(splits: Splits, share: float, seed: int) -> Splits:
    """Take a seeded, stratified share of the training images for validation, if there is no validation split.

    With labels, the number of images is at least that of classes.

    Raises:
        InputError: there are too few training images.
    """
    train = splits.train
    if len(splits.validation):
        return splits
    wanted = max(len(splits.class_names) if train.labelled else 1, round(len(train) * share))
    if wanted * 2 > len(train):
        among = f" for {len(splits.class_names)} classes" if train.labelled else ""
        raise InputError(
            f"The data have {len(train)} training images, too few to take a validation split{among}. Add a val/ "
            "folder, or more images."
        )
    validation, rest = stratified_split(train.labels, wanted, seed)
    parts = {
        "train": train.subset(rest.sort().values),
        "val": train.subset(validation.sort().values),
        "test": splits.test,
    }
    note = (
        f"Validation: {wanted} images carved from the training images (seed {seed}); given weights may have seen them."
    )
    return make_splits(parts, splits.class_names, (*splits.notes, note))


def reorder_classes(splits: Splits, class_names: Sequence[str]) -> Splits:
    """The same images with labels for another order of the classes: ``class_names`` is a permutation of the splits' own."""
    order = torch.tensor([list(class_names).index(name) for name in splits.class_names])
    relabelled = {
        name: replace(part, labels=order[part.labels])
        for name in ("train", "validation", "test")
        if (part := getattr(splits, name)).labelled
    }
    return replace(splits, class_names=tuple(class_names), **relabelled)


def make_splits(parts: dict[str, Images], class_names: Sequence[str], notes: Sequence[str]) -> Splits:
    """Splits from ``train``, ``val`` and ``test``, with the hash of their listing."""
    listing = {
        name: [list(parts[name].names), parts[name].labels.tolist() if parts[name].labelled else None]
        for name in ("train", "val", "test")
    }
    return Splits(parts["train"], parts["val"], parts["test"], tuple(class_names), sha256_json(listing), tuple(notes))
