"""Load images from every form of ``--data``, and check them before any work."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...common.errors import InputError
from .digits_images import load_digits_splits
from .folders import SplitFiles, list_folder
from .images import Images, PixelStore
from .pictures import Preprocessing, mode_notes, open_picture, picture_mode
from .splits import Found, Splits, carve_validation, make_splits
from .torchvision_sets import TORCHVISION_SETS, read_torchvision
from .user_dataset import read_function


def load_images(data: str, preprocessing: Preprocessing, *, validation_share: float = 0.1, seed: int = 0) -> Splits:
    """Load ``digits``, a folder in ImageFolder form, a torchvision set (``cifar10:DIR``, ``cifar100:DIR``,
    ``fashion-mnist:DIR``) or ``file.py:function``.

    If there is no validation split, a seeded, stratified one is taken from the training images; for images without labels,
    call ``label_images`` and then ``carve_validation``. A split of a folder may hold pictures without labels instead of class
    folders, and so may the whole folder, which the seed then splits.

    Raises:
        InputError: the data do not exist, a class folder is empty, an image cannot be read, or labels are out of range.

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
        raise InputError(f"The path {data!r} is not UTF-8, which reports need. Rename the folder.") from error
    if data == "digits":
        return load_digits_splits(preprocessing)
    found = _read(data, preprocessing, seed)
    parts, classes = dict(found.parts), len(found.class_names)
    for name, images in parts.items():
        if images.labelled and len(images) and int(images.labels.min()) < 0:
            raise InputError(
                f"{data}: the {name} split has the label {int(images.labels.min())}; labels must start from 0."
            )
        if images.labelled and len(images) and int(images.labels.max()) >= classes:
            raise InputError(
                f"{data}: labels of the {name} split run from {int(images.labels.min())} to "
                f"{int(images.labels.max())}, but there are {classes} classes. Correct the labels or the class names."
            )
    parts.setdefault("val", parts["train"].subset(torch.arange(0)))
    splits = make_splits(parts, found.class_names, found.notes)
    return carve_validation(splits, validation_share, seed) if splits.train.labelled else splits


def _read(data: str, preprocessing: Preprocessing, seed: int) -> Found:
    kind, _, place = data.partition(":")
    if kind in TORCHVISION_SETS:
        return read_torchvision(kind, place, preprocessing)
    if data.rpartition(":")[0].endswith(".py"):
        return read_function(data, preprocessing)
    return _read_folder(Path(data), preprocessing, seed)


def check_readable(images: Images, what: str, report: Callable[[int], None] = lambda count: None) -> str:
    """Decode every image once, so that a corrupt one is found before the work starts.

    Args:
        what: the split as messages name it.
        report: called with the number of images of every batch.

    Returns:
        The SHA-256 of all labels and pixels.

    Raises:
        InputError: an image cannot be read, or holds NaN or infinity.
    """
    digest = hashlib.sha256(str(images.labels.tolist()).encode())
    for start in range(0, len(images), 256):
        part = torch.arange(start, min(start + 256, len(images)))
        pixels = images.pixels(part)
        if pixels.is_floating_point() and not bool(torch.isfinite(pixels).all()):
            raise InputError(
                f"The {what} images {start} to {start + len(part) - 1} hold NaN or infinity. Remove or repair them."
            )
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
