"""Images with labels: read from wherever they lie, checked, split, and handed out in normalised batches."""

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..environment import available_cores
from ..errors import InputError, UsageError
from ..files import sha256_json
from .loading import describe, import_function

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
CACHE_BYTES = 2**30
LARGEST_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input.

    ``input_shape`` is (channels, height, width). A picture of another size is resized so that its shorter side is
    ``resize`` pixels (the input's, if None), then cropped at the centre. Values in [0, 1] are normalised by
    ``mean`` and ``std``, one number per channel.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 or [0, 1] float pixels ``[n, C, H, W]`` to the network's input, float32."""
        values = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()
        mean = torch.tensor(self.mean, device=values.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=values.device).view(1, -1, 1, 1)
        return (values - mean) / std

    def to_pixels(self, picture: Image.Image) -> Tensor:
        """A PIL picture to uint8 ``[C, H, W]``."""
        channels, height, width = self.input_shape
        if channels not in (1, 3):
            raise InputError(
                f"Pictures have 1 or 3 channels; the model expects {channels}. Give its images by file.py:function."
            )
        picture = _to_eight_bits(picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height) or self.resize is not None:
            short = self.resize or max(height, width)
            scale = short / min(picture.size)
            size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
            if size != picture.size:
                picture = picture.resize(size, Image.Resampling.BILINEAR)
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        array = np.asarray(picture, dtype=np.uint8)
        return torch.from_numpy(array.copy()).reshape(height, width, channels).permute(2, 0, 1)


class _Store:
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
    """Labelled images of one split.

    ``labels`` is int64 ``[n]``; ``names`` identify each image (a path below the data folder, or an index).
    """

    labels: Tensor
    names: tuple[str, ...]
    preprocessing: Preprocessing
    _store: _Store = field(repr=False)
    _indices: Tensor = field(repr=False)

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

    ``listing_sha256`` hashes names and labels of all three; ``notes`` say what the reader of a report must know.
    """

    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    listing_sha256: str
    notes: tuple[str, ...] = ()


def images_from_tensor(pixels: Tensor, labels: Tensor, preprocessing: Preprocessing) -> Images:
    """Images from pixels in memory, uint8 or float in [0, 1], ``[n, C, H, W]``, and int64 labels ``[n]``."""
    if tuple(pixels.shape[1:]) != preprocessing.input_shape:
        raise InputError(
            f"The images are {_shape(pixels.shape[1:])} but the model expects {_shape(preprocessing.input_shape)} "
            "(channels x height x width). Give images of that size, or another --input-shape."
        )
    store = _Store(len(pixels), lambda index: pixels[index])
    names = tuple(str(index) for index in range(len(pixels)))
    return Images(labels.long(), names, preprocessing, store, torch.arange(len(pixels)))


def load_images(data: str, preprocessing: Preprocessing, *, validation_share: float = 0.1, seed: int = 0) -> Splits:
    """Load ``digits``, a folder in ImageFolder form, a torchvision set (``cifar10:DIR``, ``cifar100:DIR``,
    ``fashion-mnist:DIR``) or ``file.py:function``.

    A data set without a validation split gets a seeded, stratified one carved from its training images.

    Raises:
        InputError: the data do not exist, a class folder is empty, an image cannot be read, labels are off.
    """
    try:
        data.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"The path {data!r} is not UTF-8, so no report could name it. Rename the folder.") from error
    if data == "digits":
        from .digits import load_digits_splits

        return load_digits_splits(preprocessing)
    kind, _, place = data.partition(":")
    if kind in _TORCHVISION_SETS:
        parts, class_names, notes = _torchvision_set(kind, place, preprocessing)
    elif data.rpartition(":")[0].endswith(".py"):
        parts, class_names, notes = _from_function(data, preprocessing)
    else:
        parts, class_names, notes = _folder(Path(data), preprocessing)
    for name, images in parts.items():
        if len(images) and int(images.labels.min()) < 0:
            raise InputError(f"{data}: the {name} split has the label {int(images.labels.min())}; labels count from 0.")
    if "val" not in parts:
        train = parts["train"]
        wanted = max(len(class_names), round(len(train) * validation_share))
        if wanted * 2 > len(train):
            raise InputError(
                f"{data}: {len(train)} training images are too few to take a validation split for {len(class_names)} "
                "classes from. Add a val/ folder, or more images."
            )
        validation, rest = stratified_split(train.labels, wanted, seed)
        parts["val"], parts["train"] = train.subset(validation.sort().values), train.subset(rest.sort().values)
        notes.append(
            f"Validation: {wanted} images carved from train/ (seed {seed}); supplied weights may have seen them."
        )
    for name, images in parts.items():
        if len(images) and not 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(class_names):
            raise InputError(
                f"{data}: labels of the {name} split run from {int(images.labels.min())} to "
                f"{int(images.labels.max())}, but there are {len(class_names)} classes."
            )
    return make_splits(parts, class_names, notes)


def make_splits(parts: dict[str, Images], class_names: Sequence[str], notes: Sequence[str]) -> Splits:
    """Bring ``train``, ``val`` and ``test`` together with the hash of their listing."""
    listing = {name: [list(parts[name].names), parts[name].labels.tolist()] for name in ("train", "val", "test")}
    return Splits(parts["train"], parts["val"], parts["test"], tuple(class_names), sha256_json(listing), tuple(notes))


def stratified_split(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of ``count`` items in which every class has its share (largest remainders), and of the rest.

    Both come in seeded random order.
    """
    generator = _generator(seed)
    classes = sorted(set(labels.tolist()))
    quotas = {label: count * int((labels == label).sum()) / len(labels) for label in classes}
    sizes = {label: math.floor(quota) for label, quota in quotas.items()}
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


def _folder(root: Path, preprocessing: Preprocessing) -> tuple[dict[str, Images], list[str], list[str]]:
    if not root.exists():
        raise InputError(
            f"The data {str(root)!r} do not exist. Expected: digits, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, "
            "file.py:function, or a folder with train/ and test/ that hold one folder per class."
        )
    if not root.is_dir():
        raise InputError(
            f"The data {root} are a file. Expected a folder with train/ and test/ (and, if you like, val/)."
        )
    folders = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    for needed in ("train", "test"):
        if needed not in folders:
            raise InputError(
                f"{root} has no {needed}/ folder. Expected {root}/train/CLASS/IMAGE and {root}/test/CLASS/IMAGE; "
                "test images are used once, for the report."
            )
    class_names = _class_folders(folders["train"])
    parts, modes = {}, Counter[str]()
    for name, folder in folders.items():
        found = _class_folders(folder)
        if found != class_names:
            odd = sorted(set(found) ^ set(class_names))
            raise InputError(
                f"{folder} and {folders['train']} differ in their class folders: {', '.join(map(repr, odd[:5]))}. "
                "Both need the same ones."
            )
        files, labels = [], []
        for label, class_name in enumerate(class_names):
            members = sorted(
                path
                for path in (folder / class_name).rglob("*")
                if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
            )
            if not members:
                raise InputError(
                    f"The class folder {folder / class_name} holds no image. Add images or remove the folder."
                )
            files += members
            labels += [label] * len(members)
        parts[name] = _file_images(files, labels, root, preprocessing, modes)
    return parts, class_names, _mode_notes(modes, preprocessing.input_shape[0])


def _class_folders(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder} holds no class folders. Expected {folder}/CLASS/IMAGE.")
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"The class folder {name!r} in {folder} has a name that is not UTF-8. Rename it."
            ) from error
    return names


def _file_images(
    files: list[Path], labels: list[int], root: Path, preprocessing: Preprocessing, modes: Counter[str]
) -> Images:
    def read(index: int) -> Tensor:
        return preprocessing.to_pixels(open_picture(files[index]))

    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(path) as picture:
                    _check_size(path, picture)
                    modes[picture.mode] += 1
        except Image.DecompressionBombError as error:
            raise InputError(f"The image {path} is too large to open safely: {error}") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise InputError(f"The image {path} cannot be read ({error}). Mend it or take it out.") from error
    names = tuple(path.relative_to(root).as_posix() for path in files)
    return Images(torch.tensor(labels), names, preprocessing, _Store(len(files), read), torch.arange(len(files)))


def open_picture(path: Path) -> Image.Image:
    """Open and decode a picture file.

    Raises:
        InputError: missing, truncated, corrupt, or too large to open safely.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                _check_size(path, picture)
                picture.load()
                return picture.copy()
    except FileNotFoundError as error:
        raise InputError(f"The image {path} does not exist.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"The image {path} cannot be read ({error}). Mend it or take it out.") from error


def _check_size(path: Path, picture: Image.Image) -> None:
    if picture.mode == "F":
        raise InputError(
            f"The image {path} has floating-point pixels, whose range is not known. Save it with 8 or 16 bits."
        )
    if picture.width * picture.height > LARGEST_PIXELS:
        megapixels = picture.width * picture.height / 1e6
        raise InputError(
            f"The image {path} has {megapixels:.0f} megapixels; more than {LARGEST_PIXELS / 1e6:.0f} are refused. Shrink it."
        )


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I;16", "I;16L", "I;16B", "I"):
        values = np.asarray(picture).astype(np.int64)
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8), mode="L")
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture


def _mode_notes(modes: Counter[str], channels: int) -> list[str]:
    wanted = "L" if channels == 1 else "RGB"
    words = {"L": "grey", "LA": "grey with alpha", "P": "palette", "1": "bilevel", "I": "16-bit grey"}
    words |= dict.fromkeys(("I;16", "I;16L", "I;16B"), "16-bit grey")
    return [
        f"{count} images are {words.get(mode, mode)} and were converted to {'grey' if channels == 1 else 'RGB'}."
        for mode, count in sorted(modes.items())
        if mode != wanted
    ]


_TORCHVISION_SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}


def _torchvision_set(
    kind: str, place: str, preprocessing: Preprocessing
) -> tuple[dict[str, Images], list[str], list[str]]:
    import torchvision

    if not place:
        raise UsageError(f"--data {kind} needs its folder: {kind}:DIR.")
    constructor = getattr(torchvision.datasets, _TORCHVISION_SETS[kind])
    parts: dict[str, Images] = {}
    for name, is_train in (("train", True), ("test", False)):
        try:
            found = constructor(place, train=is_train, download=False)
        except (RuntimeError, OSError, EOFError) as error:
            raise InputError(
                f"{place} does not hold {_TORCHVISION_SETS[kind]} as torchvision writes it ({error}). Download it with "
                f"torchvision.datasets.{_TORCHVISION_SETS[kind]}({place!r}, download=True)."
            ) from error
        data = torch.as_tensor(np.asarray(found.data))
        pixels = data.unsqueeze(1) if data.dim() == 3 else data.permute(0, 3, 1, 2)
        parts[name] = images_from_tensor(pixels, torch.as_tensor(found.targets), preprocessing)
    return parts, list(found.classes), []


def _from_function(data: str, preprocessing: Preprocessing) -> tuple[dict[str, Images], list[str], list[str]]:
    """The function returns a mapping with ``train``, ``test`` and, if it likes, ``val`` and ``class_names``.

    Each split is a map-style data set of (PIL image or ``[C, H, W]`` tensor, label).
    """
    function = import_function(data, "--data")
    try:
        found = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"--data {data}: calling it failed with {describe(error)}") from error
    if not isinstance(found, dict) or not {"train", "test"} <= set(found):
        raise InputError(
            f"{data} must return a dict with 'train' and 'test' (and, if you like, 'val' and 'class_names'), each split "
            f"a data set of (image, label). It returned {type(found).__name__}."
        )
    parts = {
        name: _dataset_images(found[name], f"{data}, split {name!r}", preprocessing)
        for name in ("train", "val", "test")
        if name in found
    }
    class_names = found.get("class_names") or getattr(found["train"], "classes", None)
    if class_names is None:
        count = 1 + max(int(images.labels.max()) for images in parts.values())
        class_names = [str(label) for label in range(count)]
    return parts, [str(name) for name in class_names], []


def _dataset_images(dataset: Any, what: str, preprocessing: Preprocessing) -> Images:
    try:
        count = len(dataset)
    except TypeError as error:
        raise InputError(f"{what} has no length; a map-style data set of (image, label) is needed.") from error
    if count == 0:
        raise InputError(f"{what} is empty.")

    dtypes: list[torch.dtype] = []

    def read(index: int) -> Tensor:
        image = _row(dataset, index, what)[0]
        tensor = preprocessing.to_pixels(image) if isinstance(image, Image.Image) else _as_tensor(image, index, what)
        if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
            raise InputError(f"{what}: image {index} is {tensor.dtype}. Return uint8 (0 to 255) or floats in [0, 1].")
        dtypes.append(tensor.dtype)
        if tensor.dtype != dtypes[0]:
            raise InputError(
                f"{what}: image {index} is {tensor.dtype}, others {dtypes[0]}. Return one kind throughout."
            )
        if tuple(tensor.shape) != preprocessing.input_shape:
            raise InputError(
                f"{what}: image {index} is {_shape(tensor.shape)}; the model expects {_shape(preprocessing.input_shape)}."
            )
        if tensor.is_floating_point() and (float(tensor.min()) < 0 or float(tensor.max()) > 1):
            raise InputError(
                f"{what}: image {index} has values outside [0, 1]. Return uint8 or [0, 1]; secateur normalises by itself."
            )
        return tensor

    targets = getattr(dataset, "targets", None)
    found = [_row(dataset, index, what)[1] for index in range(count)] if targets is None else list(targets)
    try:
        labels = [int(label) for label in found]
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: labels must be whole numbers from 0 ({error}).") from error
    names = tuple(str(index) for index in range(count))
    return Images(torch.tensor(labels), names, preprocessing, _Store(count, read), torch.arange(count))


def _as_tensor(image: Any, index: int, what: str) -> Tensor:
    try:
        return torch.as_tensor(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what}: image {index} is a {type(image).__name__}; a picture or a tensor was expected."
        ) from error


def _row(dataset: Any, index: int, what: str) -> tuple[Any, Any]:
    """(image, label) of one row of a user's data set."""
    try:
        image, label = dataset[index]
    except InputError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"{what}: row {index} cannot be read as (image, label): {describe(error)}") from error
    return image, label


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
