"""Read images from the data sets that a user's function returns."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...common.errors import InputError, describe
from ...common.user_code import import_function
from .images import Images, PixelStore
from .pictures import Preprocessing, in_words
from .splits import Found


def read_function(data: str, preprocessing: Preprocessing) -> Found:
    """Read what ``file.py:function`` returns: a dict with ``train``, ``test`` and optionally ``val`` and ``class_names``.

    Each split is a map-style data set of (PIL image or ``[C, H, W]`` tensor, label).

    Raises:
        InputError: the function fails or returns something else.
    """
    function = import_function(data, "--data")
    try:
        found = function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"--data {data}: calling it failed with {describe(error)}") from error
    if not isinstance(found, dict) or not {"train", "test"} <= set(found):
        raise InputError(
            f"{data} must return a dict with 'train', 'test' and optionally 'val' and 'class_names', each split "
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
    return Found(parts, tuple(str(name) for name in class_names))


def _dataset_images(dataset: Any, what: str, preprocessing: Preprocessing) -> Images:
    try:
        count = len(dataset)
    except TypeError as error:
        raise InputError(f"{what} has no length. Return a map-style data set of (image, label).") from error
    if count == 0:
        raise InputError(f"{what} is empty. Return at least one image.")

    dtypes: list[torch.dtype] = []

    def read(index: int) -> Tensor:
        image = _row(dataset, index, what)[0]
        tensor = preprocessing.to_pixels(image) if isinstance(image, Image.Image) else _as_tensor(image, index, what)
        if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
            raise InputError(f"{what}: image {index} is {tensor.dtype}. Return uint8 (0 to 255) or floats in [0, 1].")
        dtypes.append(tensor.dtype)
        if tensor.dtype != dtypes[0]:
            raise InputError(
                f"{what}: image {index} is {tensor.dtype}, others are {dtypes[0]}. Return one dtype for all images."
            )
        if tuple(tensor.shape) != preprocessing.input_shape:
            raise InputError(
                f"{what}: image {index} is {in_words(tensor.shape)}; the model expects {in_words(preprocessing.input_shape)}."
            )
        if tensor.is_floating_point() and (float(tensor.min()) < 0 or float(tensor.max()) > 1):
            raise InputError(
                f"{what}: image {index} has values outside [0, 1]. Return uint8 or values in [0, 1]; secateur normalises them."
            )
        return tensor

    targets = getattr(dataset, "targets", None)
    found = [_row(dataset, index, what)[1] for index in range(count)] if targets is None else list(targets)
    try:
        labels = [int(label) for label in found]
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: labels must be integers from 0 ({error}).") from error
    names = tuple(str(index) for index in range(count))
    return Images(torch.tensor(labels), names, preprocessing, PixelStore(count, read), torch.arange(count))


def _as_tensor(image: Any, index: int, what: str) -> Tensor:
    try:
        return torch.as_tensor(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what}: image {index} is a {type(image).__name__}; expected a PIL image or a tensor."
        ) from error


def _row(dataset: Any, index: int, what: str) -> tuple[Any, Any]:
    """The (image, label) at an index of a user's data set."""
    try:
        image, label = dataset[index]
    except InputError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"{what}: item {index} is not an (image, label): {describe(error)}") from error
    return image, label
