"""Read torchvision's data sets from the folder in which torchvision stored them."""

import numpy as np
import torch

from ...common.errors import InputError, UsageError
from .images import Images, images_from_tensor
from .pictures import Preprocessing
from .splits import Found

TORCHVISION_SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}


def read_torchvision(kind: str, place: str, preprocessing: Preprocessing) -> Found:
    """Read a data set as torchvision stores it in the folder ``place``; ``kind`` is a key of ``TORCHVISION_SETS``.

    Raises:
        UsageError: no folder is given.
        InputError: the folder does not hold the data set.
    """
    import torchvision

    if not place:
        raise UsageError(f"--data {kind} needs a folder: {kind}:DIR.")
    constructor = getattr(torchvision.datasets, TORCHVISION_SETS[kind])
    parts: dict[str, Images] = {}
    for name, is_train in (("train", True), ("test", False)):
        try:
            found = constructor(place, train=is_train, download=False)
        except (RuntimeError, OSError, EOFError) as error:
            raise InputError(
                f"{place} does not hold {TORCHVISION_SETS[kind]} as torchvision stores it ({error}). Download it with "
                f"torchvision.datasets.{TORCHVISION_SETS[kind]}({place!r}, download=True)."
            ) from error
        data = torch.as_tensor(np.asarray(found.data))
        pixels = data.unsqueeze(1) if data.dim() == 3 else data.permute(0, 3, 1, 2)
        parts[name] = images_from_tensor(pixels, torch.as_tensor(found.targets), preprocessing)
    return Found(parts, tuple(found.classes))
