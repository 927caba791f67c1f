"""Images, with labels or without: read from wherever they lie, checked, split, and handed out in normalised batches."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..environment import available_cores
from ..errors import InputError
from ..files import sha256_json
from .folders import SplitFiles, list_folder
from .pictures import Preprocessing as Preprocessing
from .pictures import in_words, mode_notes, picture_mode
from .pictures import open_picture as open_picture

CACHE_BYTES = 2**30


class PixelStore:
    """Decoded pixels of one data set, kept while they fit into ``CACHE_BYTES``."""

    def __init__(self, count: int, read: Callable[[int], Tensor]) -> None:
        self._count, self._read = count, read
        self._cache: Tensor | None = None
        self._cached = torch.zeros(count, dtype=torch.bool)
        self._too_large = False

    def pixels(self, indices: Tensor) -> Tensor:
        if self._too_large:
            return torch.stack(self._decode(indices.tolist()))
        missing = sorted(set(indices[~self._cached[indices]].tolist()))
        if missing:
            decoded = self._decode(missing)
            if self._cache is None:
                if decoded[0].numel() * decoded[0].element_size() * self._count > CACHE_BYTES:
                    self._too_large = True
                    return self.pixels(indices)
                self._cache = torch.empty((self._count, *decoded[0].shape), dtype=decoded[0].dtype)
            self._cache[torch.tensor(missing)] = torch.stack(decoded)
            self._cached[torch.tensor(missing)] = True
        assert self._cache is not None
        return self._cache[indices]

    def _decode(self, indices: list[int]) -> list[Tensor]:
        if len(indices) < 4:
            return [self._read(index) for index in indices]
        with ThreadPoolExecutor(max_workers=available_cores()) as pool:
            return list(pool.map(self._read, indices))


@dataclass(frozen=True)
class Images:
    """Images of one split.

    ``labels`` is int64 ``[n]``; ``names`` identify each image (a path below the data folder, or an index). Where
    ``labelled`` is False the images came without labels: these are -1, then what a network predicted (``label_images``).
    """

    labels: Tensor
    names: tuple[str, ...]
    preprocessing: Preprocessing
    _store: PixelStore = field(repr=False)
    _indices: Tensor = field(repr=False)
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, indices: Tensor | None = None) -> Tensor:
        """uint8 (or float in [0, 1]) pixels ``[n, C, H, W]`` of the images asked for."""
        chosen = self._indices if indices is None else self._indices[indices]
        return self._store.pixels(chosen)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (normalised images ``[n, C, H, W]``, labels ``[n]``) in the given order (as stored, if None)."""
        order = torch.arange(len(self)) if order is None else order
        for start in range(0, len(order), size):
            part = order[start : start + size]
            yield self.preprocessing.normalise(self.pixels(part)), self.labels[part]

    def subset(self, indices: Tensor) -> "Images":
        """The images at ``indices``, in that order; decoded pixels are shared, not copied."""
        names = tuple(self.names[index] for index in indices.tolist())
        return replace(self, labels=self.labels[indices], names=names, _indices=self._indices[indices])

    def sample(self, count: int, seed: int) -> "Images":
        """A seeded, stratified sample of ``count`` images (all of them if there are no more), in random order."""
        if count >= len(self):
            return self.subset(torch.randperm(len(self), generator=_generator(seed)))
        chosen, _ = stratified_split(self.labels, count, seed)
        return self.subset(chosen)


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


def images_from_tensor(pixels: Tensor, labels: Tensor, preprocessing: Preprocessing) -> Images:
    """Images from pixels in memory, uint8 or float in [0, 1], ``[n, C, H, W]``, and int64 labels ``[n]``."""
    if tuple(pixels.shape[1:]) != preprocessing.input_shape:
        raise InputError(
            f"The images are {in_words(pixels.shape[1:])} but the model expects {in_words(preprocessing.input_shape)} "
            "(channels x height x width). Give images of that size, or another --input-shape."
        )
    store = PixelStore(len(pixels), lambda index: pixels[index])
    names = tuple(str(index) for index in range(len(pixels)))
    return Images(labels.long(), names, preprocessing, store, torch.arange(len(pixels)))


def load_images(data: str, preprocessing: Preprocessing, *, validation_share: float = 0.1, seed: int = 0) -> Splits:
    """Load ``digits``, a folder in ImageFolder form, a torchvision set (``cifar10:DIR``, ``cifar100:DIR``,
    ``fashion-mnist:DIR``) or ``file.py:function``.

    A data set without a validation split gets a seeded, stratified one carved from its training images; where these have
    no labels, ``label_images`` and then ``carve_validation`` do that. A split of a folder may hold pictures without labels
    instead of class folders, and so may the whole folder, which is then split by the seed.

    Raises:
        InputError: the data do not exist, a class folder is empty, an image cannot be read, labels are off.

    Examples:
        >>> import secateur
        >>> images = secateur.load_images("digits", secateur.load_model("digits").preprocessing)
        >>> len(images.train), len(images.validation), len(images.test)
        (1077, 360, 360)
        >>> batch, labels = next(images.test.batches(32))  # normalised
        >>> batch.shape, labels.dtype
        (torch.Size([32, 1, 8, 8]), torch.int64)
    """
    try:
        data.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"The path {data!r} is not UTF-8, so no report could name it. Rename the folder.") from error
    if data == "digits":
        from .digits import load_digits_splits

        return load_digits_splits(preprocessing)
    found = _read(data, preprocessing, seed)
    parts, classes = dict(found.parts), len(found.class_names)
    for name, images in parts.items():
        if images.labelled and len(images) and int(images.labels.min()) < 0:
            raise InputError(f"{data}: the {name} split has the label {int(images.labels.min())}; labels count from 0.")
        if images.labelled and len(images) and int(images.labels.max()) >= classes:
            raise InputError(
                f"{data}: labels of the {name} split run from {int(images.labels.min())} to "
                f"{int(images.labels.max())}, but there are {classes} classes."
            )
    parts.setdefault("val", parts["train"].subset(torch.arange(0)))
    splits = make_splits(parts, found.class_names, found.notes)
    return carve_validation(splits, validation_share, seed) if splits.train.labelled else splits


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


def _read(data: str, preprocessing: Preprocessing, seed: int) -> Found:
    from .datasets import TORCHVISION_SETS, read_function, read_torchvision

    kind, _, place = data.partition(":")
    if kind in TORCHVISION_SETS:
        return read_torchvision(kind, place, preprocessing)
    if data.rpartition(":")[0].endswith(".py"):
        return read_function(data, preprocessing)
    return _read_folder(Path(data), preprocessing, seed)


def make_splits(parts: dict[str, Images], class_names: Sequence[str], notes: Sequence[str]) -> Splits:
    """Bring ``train``, ``val`` and ``test`` together with the hash of their listing."""
    listing = {
        name: [list(parts[name].names), parts[name].labels.tolist() if parts[name].labelled else None]
        for name in ("train", "val", "test")
    }
    return Splits(parts["train"], parts["val"], parts["test"], tuple(class_names), sha256_json(listing), tuple(notes))


def stratified_split(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of ``count`` items in which every class has its share (largest remainders), and of the rest.

    Both come in seeded random order. Of more classes than items, chance decides among equals which are drawn.
    """
    generator = _generator(seed)
    classes = sorted(set(labels.tolist()))
    quotas = {label: count * int((labels == label).sum()) / len(labels) for label in classes}
    sizes = {label: math.floor(quota) for label, quota in quotas.items()}
    if count < len(classes):
        classes = [classes[index] for index in torch.randperm(len(classes), generator=generator).tolist()]
    by_remainder = sorted(classes, key=lambda label: sizes[label] - quotas[label])
    for label in by_remainder[: count - sum(sizes.values())]:
        sizes[label] += 1
    chosen, rest = [], []
    for label in classes:
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[: sizes[label]])
        rest.append(members[sizes[label] :])
    first, second = torch.cat(chosen), torch.cat(rest)
    return (
        first[torch.randperm(len(first), generator=generator)],
        second[torch.randperm(len(second), generator=generator)],
    )


def check_readable(images: Images, what: str, report: Callable[[int], None] = lambda count: None) -> str:
    """Decode every image once, so that a corrupt one is named before hours are spent; the SHA-256 of all pixels."""
    digest = hashlib.sha256(str(images.labels.tolist()).encode())
    for start in range(0, len(images), 256):
        part = torch.arange(start, min(start + 256, len(images)))
        pixels = images.pixels(part)
        if pixels.is_floating_point() and not bool(torch.isfinite(pixels).all()):
            raise InputError(f"The {what} images between number {start} and {start + len(part)} hold NaN or infinity.")
        digest.update(pixels.contiguous().numpy().tobytes())
        report(len(part))
    return digest.hexdigest()


def _read_folder(root: Path, preprocessing: Preprocessing, seed: int) -> Found:
    listing = list_folder(root, seed)
    parts, modes = {}, Counter[str]()
    for name, split in listing.splits.items():
        modes.update(map(picture_mode, split.files))
        parts[name] = _file_images(split, root, preprocessing)
    return Found(parts, listing.class_names, (*listing.notes, *mode_notes(modes, preprocessing.input_shape[0])))


def _file_images(split: SplitFiles, root: Path, preprocessing: Preprocessing) -> Images:
    def read(index: int) -> Tensor:
        return preprocessing.to_pixels(open_picture(split.files[index]))

    count = len(split.files)
    names = tuple(path.relative_to(root).as_posix() for path in split.files)
    labels = torch.full((count,), -1) if split.labels is None else torch.tensor(split.labels)
    store = PixelStore(count, read)
    return Images(labels, names, preprocessing, store, torch.arange(count), labelled=split.labels is not None)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
