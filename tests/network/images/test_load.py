import numpy as np
import pytest
import torch
from PIL import Image

from secateur.common.errors import InputError
from secateur.network.images.load import check_readable, load_images
from secateur.network.images.pictures import Preprocessing

COLOUR = Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3)


def test_a_folder_is_read_file_by_file(folder):
    splits = load_images(str(folder), COLOUR, validation_share=0.2)
    assert splits.class_names == ("cat", "dog")
    for part in (splits.train, splits.validation, splits.test):
        for name, label, pixels in zip(part.names, part.labels.tolist(), part.pixels(), strict=True):
            assert splits.class_names[label] == name.split("/")[1]
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(folder / name)))


def test_an_empty_class_folder_is_named(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="train/dog"):
        load_images(str(folder), COLOUR)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_named(folder, split):
    (folder / split).rename(folder / "other")
    with pytest.raises(InputError, match=f"no {split}/ folder"):
        load_images(str(folder), COLOUR)


def test_class_folders_must_agree(folder):
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(InputError, match=r"'dog', 'wolf'"):
        load_images(str(folder), COLOUR)


@pytest.mark.parametrize("data", ["nowhere", "a-file"])
def test_data_that_are_no_folder(tmp_path, data):
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(InputError, match=data):
        load_images(str(tmp_path / data), COLOUR)


def test_a_class_name_that_is_not_utf8_is_named(folder):
    import os

    name = os.fsencode(folder / "train") + b"/\xff\xfe"
    try:
        os.mkdir(name)  # noqa: PTH102 (bytes)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match="UTF-8"):
        load_images(str(folder), COLOUR)


def test_a_file_that_is_no_image_is_named_at_load(folder):
    (folder / "train" / "cat" / "03.png").write_bytes(b"these are no pixels")
    with pytest.raises(InputError, match=r"cat/03\.png"):
        load_images(str(folder), COLOUR)


def test_an_empty_image_file_is_named_at_load(folder):
    (folder / "train" / "cat" / "03.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cat/03\.png"):
        load_images(str(folder), COLOUR)


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_a_truncated_image_is_named_when_its_pixels_are_read(folder, form, picture):
    path = folder / "test" / "dog" / f"cut.{form}"
    picture(7, (64, 64)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    splits = load_images(str(folder), COLOUR)
    check_readable(splits.train, "training")
    with pytest.raises(InputError, match=rf"dog/cut\.{form}"):
        check_readable(splits.test, "test")


def test_a_png_with_a_flipped_bit_is_named(folder):
    path = folder / "test" / "dog" / "00.png"
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 20
    content[place] ^= 0xFF
    path.write_bytes(content)
    splits = load_images(str(folder), COLOUR)
    with pytest.raises(InputError, match=r"dog/00\.png"):
        check_readable(splits.test, "test")


def test_check_readable_counts_every_image(folder):
    seen = []
    check_readable(load_images(str(folder), COLOUR).test, "test", seen.append)
    assert sum(seen) == 8


def test_real_jpeg_files_agree_with_torchvision(cifar):
    from torchvision.datasets import ImageFolder

    splits = load_images(str(cifar), Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3))
    peer = ImageFolder(cifar / "test")
    assert list(splits.class_names) == peer.classes
    assert splits.test.labels.tolist() == peer.targets
    for index in (0, 57, 199):
        assert np.array_equal(splits.test.pixels(torch.tensor([index]))[0].permute(1, 2, 0), np.asarray(peer[index][0]))
