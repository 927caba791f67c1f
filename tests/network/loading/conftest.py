"""A folder of pictures for networks that are loaded from files."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def noise_folder(tmp_path):
    """Coloured noise of 12x12 pixels in four classes, in ImageFolder form."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for label in range(4):
            folder = tmp_path / "data" / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(60 * label, 60 * label + 70, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "data"
