"""Training, validation and test images that belong together."""

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

    ``listing_sha256`` hashes names and labels (null for images without any) of all three; ``notes`` say what the reader
    of a report must know. ``class_names`` is empty where no split has labels and no network has named the classes yet.
    """

    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    listing_sha256: str
    notes: tuple[str, ...] = ()

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """Which of ``train``, ``validation`` and ``test`` came without labels."""
        return tuple(name for name in ("train", "validation", "test") if not getattr(self, name).labelled)


@dataclass(frozen=True)
class Found:
    """Images as they were found: ``train``, ``test`` and, if there is one, ``val``."""

    parts: dict[str, Images]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def carve_validation(splits: Splits, share: float, seed: int) -> Splits:
    """Take a seeded, stratified share of the training images for validation, if there is no validation split.

    Every class gets an image at least, where labels were given.

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
            f"The data have {len(train)} training images, too few to take a validation split{among} from. Add a val/ "
            "folder, or more images."
        )
    validation, rest = stratified_split(train.labels, wanted, seed)
    parts = {
        "train": train.subset(rest.sort().values),
        "val": train.subset(validation.sort().values),
        "test": splits.test,
    }
    note = f"Validation: {wanted} images carved from the training images (seed {seed}); supplied weights may have seen them."
    return make_splits(parts, splits.class_names, (*splits.notes, note))


def reorder_classes(splits: Splits, class_names: Sequence[str]) -> Splits:
    """The same images with their classes counted in another order; ``class_names`` are the splits' own, rearranged."""
    order = torch.tensor([list(class_names).index(name) for name in splits.class_names])
    relabelled = {
        name: replace(part, labels=order[part.labels])
        for name in ("train", "validation", "test")
        if (part := getattr(splits, name)).labelled
    }
    return replace(splits, class_names=tuple(class_names), **relabelled)


def make_splits(parts: dict[str, Images], class_names: Sequence[str], notes: Sequence[str]) -> Splits:
    """Bring ``train``, ``val`` and ``test`` together with the hash of their listing."""
    listing = {
        name: [list(parts[name].names), parts[name].labels.tolist() if parts[name].labelled else None]
        for name in ("train", "val", "test")
    }
    return Splits(parts["train"], parts["val"], parts["test"], tuple(class_names), sha256_json(listing), tuple(notes))
