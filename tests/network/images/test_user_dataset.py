import pytest
import torch

from secateur.common.errors import InputError
from secateur.network.images.load import check_readable, load_images
from secateur.network.images.pictures import Preprocessing

COLOUR = Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3)


DATA_FILE = """
import torch
from PIL import Image

def tensors():
    return {"train": [(torch.full((3, 8, 8), index / 20), index % 2) for index in range(20)],
            "test": [(torch.full((3, 8, 8), 7, dtype=torch.uint8), 1)] * 3,
            "class_names": ["no", "yes"]}

def pictures():
    row = lambda index: (Image.new("RGB", (16, 8), (index, 2, 3)), index % 3)
    return {"train": [row(index) for index in range(30)], "val": [row(1)], "test": [row(2), row(0)]}

def not_a_dict():
    return [1, 2]

def wrong_shape():
    return {**tensors(), "test": [(torch.zeros(3, 8, 9), 0)]}

def out_of_range():
    return {**tensors(), "test": [(torch.full((3, 8, 8), 1.5), 0)]}

def not_a_number():
    return {**tensors(), "test": [(torch.full((3, 8, 8), float("nan")), 0)]}

def label_too_high():
    return {**tensors(), "test": [(torch.zeros(3, 8, 8), 2)]}

def empty():
    return {**tensors(), "test": []}

def endless():
    return {**tensors(), "test": iter([])}

def mixed():
    return {**tensors(), "test": [(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 8, 8, dtype=torch.uint8), 0)]}

def no_labels():
    return {**tensors(), "test": [torch.zeros(3, 8, 8)]}

def named_labels():
    return {**tensors(), "test": [(torch.zeros(3, 8, 8), "cat")]}

class Broken:
    def __len__(self):
        return 4
    def __getitem__(self, index):
        raise OSError("row cannot be read")

def broken_rows():
    return {**tensors(), "test": Broken()}

def raises():
    raise LookupError("the disk is elsewhere")
"""


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "mydata.py"
    path.write_text(DATA_FILE)
    return path


def test_tensors_from_a_function(data_file):
    splits = load_images(f"{data_file}:tensors", COLOUR, validation_share=0.2)
    assert splits.class_names == ("no", "yes")
    assert (len(splits.train), len(splits.validation)) == (16, 4)
    for name, label, pixels in zip(splits.train.names, splits.train.labels, splits.train.pixels(), strict=True):
        assert int(label) == int(name) % 2
        assert torch.allclose(pixels, torch.full((3, 8, 8), int(name) / 20))
    batch, _ = next(splits.test.batches(3))
    assert torch.allclose(batch, torch.full((3, 3, 8, 8), 7 / 255))


def test_pictures_from_a_function(data_file):
    splits = load_images(f"{data_file}:pictures", COLOUR)
    assert splits.class_names == ("0", "1", "2")
    assert len(splits.train) == 30
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [2, 0]
    assert splits.test.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("not_a_dict", "must return a dict"),
        ("wrong_shape", "3x8x9"),
        ("out_of_range", r"outside \[0, 1\]"),
        ("not_a_number", "NaN"),
        ("label_too_high", "labels of the test split"),
        ("empty", "is empty"),
        ("endless", "has no length"),
        ("mixed", "test"),
        ("no_labels", "test"),
        ("named_labels", "test"),
        ("broken_rows", "row cannot be read"),
        ("raises", "the disk is elsewhere"),
        ("missing", "'missing'"),
    ],
)
def test_bad_functions_are_explained(data_file, function, words):
    with pytest.raises(InputError, match=words):
        check_readable(load_images(f"{data_file}:{function}", COLOUR).test, "test")
