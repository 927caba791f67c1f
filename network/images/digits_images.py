"""scikit-learn's handwritten digits, in a fixed split."""

import torch

from .images import images_from_tensor
from .pictures import Preprocessing
from .sampling import stratified_split
from .splits import Splits, make_splits

CLASS_NAMES = tuple("0123456789")

SPLIT_SEED, VALIDATION_IMAGES, TEST_IMAGES = 0, 360, 360


def load_digits_splits(preprocessing: Preprocessing) -> Splits:
    """The 1,797 digits of 8x8 pixels in a fixed stratified split; their 17 grey levels are scaled to 0 to 255."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.tensor(found.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    if preprocessing.input_shape[0] == 3:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    images = images_from_tensor(pixels, torch.tensor(found.target), preprocessing)
    held, train = stratified_split(images.labels, VALIDATION_IMAGES + TEST_IMAGES, SPLIT_SEED)
    validation, test = stratified_split(images.labels[held], VALIDATION_IMAGES, SPLIT_SEED + 1)
    parts = {
        "train": images.subset(train.sort().values),
        "val": images.subset(held[validation].sort().values),
        "test": images.subset(held[test].sort().values),
    }
    return make_splits(parts, CLASS_NAMES, ())
