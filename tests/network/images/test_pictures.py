import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.common.errors import InputError
from secateur.network.images.load import load_images
from secateur.network.images.pictures import Preprocessing, open_picture

COLOUR = Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3)


GREY = Preprocessing((1, 8, 8), (0.0,), (1.0,))


def enormous_png(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(20000, 20000), (10000, 9000)])
def test_an_image_of_too_many_pixels_is_refused_unread(folder, size):
    path = folder / "train" / "cat" / "huge.png"
    path.write_bytes(enormous_png(*size))
    with pytest.raises(InputError, match=r"huge\.png"):
        load_images(str(folder), COLOUR)
    with pytest.raises(InputError, match=r"huge\.png"):
        open_picture(path)


def test_conversions_to_colour_and_their_notes(folder, tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    colours = np.stack([grey, 255 - grey, grey // 2], 2)
    place = folder / "test" / "cat"
    for path in place.iterdir():
        path.unlink()
    Image.fromarray(grey, "L").save(place / "a-grey.png")
    Image.fromarray(np.dstack([colours, grey]), "RGBA").save(place / "b-rgba.png")
    palette = Image.fromarray(grey // 4, "P")
    table = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    palette.putpalette(table.tobytes())
    palette.save(place / "c-palette.png")
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 0], ink[..., 3] = grey, 30
    Image.fromarray(ink, "CMYK").save(place / "d-cmyk.tif")
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(place / "e-deep.png")
    Image.fromarray(deep).save(place / "f-deep.tif")
    Image.fromarray(grey > 100).save(place / "g-bilevel.png")

    splits = load_images(str(folder), COLOUR)
    shown = dict(zip(splits.test.names, splits.test.pixels().permute(0, 2, 3, 1).numpy(), strict=True))
    expected = {
        "a-grey.png": np.dstack([grey] * 3),
        "b-rgba.png": colours,
        "c-palette.png": table[grey // 4],
        "d-cmyk.tif": np.dstack([np.round((255.0 - grey) * 225 / 255), np.full((8, 8), 225), np.full((8, 8), 225)]),
        "e-deep.png": np.dstack([deep // 256] * 3),
        "f-deep.tif": np.dstack([deep // 256] * 3),
        "g-bilevel.png": np.dstack([(grey > 100) * 255] * 3),
    }
    for name, wanted in expected.items():
        difference = shown[f"test/cat/{name}"].astype(int) - wanted.astype(int)
        assert np.abs(difference).max() <= (1 if "cmyk" in name else 0), name
    for words in (
        "1 images are grey",
        "1 images are RGBA",
        "1 images are palette",
        "1 images are CMYK",
        "2 images are 16-bit",
    ):
        assert any(words in note for note in splits.notes), (words, splits.notes)


def test_floating_point_pictures_are_scaled_or_refused_but_not_black(folder):
    """A float TIFF in [0, 1] that is clipped to whole numbers is black."""
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(folder / "test" / "cat" / "00.tif")
    try:
        splits = load_images(str(folder), COLOUR)
        shown = splits.test.pixels(torch.tensor([splits.test.names.index("test/cat/00.tif")]))
    except InputError:
        return
    assert np.abs(shown[0, 0].numpy() / 255 - values).max() < 0.01


def test_colour_becomes_grey_by_luma(picture):
    source = picture(3)
    weights = np.array([0.299, 0.587, 0.114])
    luma = np.asarray(source).astype(float) @ weights
    assert np.abs(GREY.to_pixels(source)[0].numpy() - luma).max() <= 1


@pytest.mark.parametrize(("size", "resize"), [((32, 16), None), ((16, 40), None), ((24, 24), 12), ((31, 17), 10)])
def test_resize_keeps_the_shape_of_things_and_crops_the_centre(size, resize):
    """A picture whose red is its column and whose green is its row, so that every pixel tells where it came from."""
    width, height = size
    columns, rows = np.meshgrid(np.arange(width) * 255 / width, np.arange(height) * 255 / height)
    array = np.stack([columns, rows, np.zeros_like(rows)], 2).round().astype(np.uint8)
    got = Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3, resize).to_pixels(Image.fromarray(array)).float()
    scale = (resize or 8) / min(size)
    for axis, length in ((0, width), (1, height)):
        places = (np.arange(8) - 3.5) / scale + length / 2 - 0.5
        wanted = torch.tensor(places * 255 / length, dtype=torch.float32)
        values = got[axis].mean(0 if axis == 0 else 1)
        assert (values - wanted)[1:-1].abs().max() <= 0.75 * 255 / length / scale + 1


def test_a_picture_of_the_right_size_is_not_resampled(picture):
    source = picture(5)
    assert np.array_equal(COLOUR.to_pixels(source).permute(1, 2, 0).numpy(), np.asarray(source))


def test_normalisation_closed_form():
    preprocessing = Preprocessing((2, 1, 1), (0.2, 0.6), (0.5, 0.25))
    whole = torch.tensor([[[[0]], [[255]]], [[[51]], [[102]]]], dtype=torch.uint8)
    wanted = torch.tensor([[-0.4, 1.6], [0.0, -0.8]])
    assert torch.allclose(preprocessing.normalise(whole).flatten(1), wanted, atol=1e-6)
    assert torch.allclose(preprocessing.normalise(whole / 255).flatten(1), wanted, atol=1e-6)
    assert whole[0, 1, 0, 0] == 255
