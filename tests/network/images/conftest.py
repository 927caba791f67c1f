"""Pictures on disk."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture():
    """Makes pictures of seeded noise; ``size`` is (width, height)."""

    def make(seed, size=(8, 8), mode="RGB"):
        generator = np.random.default_rng(seed)
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8), mode)

    return make


@pytest.fixture
def folder(tmp_path, picture):
    """Two classes, 20 and 10 training images, 4 test images each."""
    seed = 0
    for split, counts in (("train", {"cat": 20, "dog": 10}), ("test", {"cat": 4, "dog": 4})):
        for name, count in counts.items():
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                picture(seed).save(tmp_path / split / name / f"{index:02}.png")
                seed += 1
    return tmp_path
