"""A user's network file and a folder of pictures."""

import pytest
from PIL import Image

from shell import NETWORK


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    return f"{path}:build"


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "images"
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (40 * index % 256, 200 * label, 30)).save(root / split / name / f"{index}.png")
    return root
