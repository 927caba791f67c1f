import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.common.errors import InputError, UsageError
from secateur.network.images import images as images_module
from secateur.network.images.images import images_from_tensor
from secateur.network.images.load import check_readable, load_images
from secateur.network.images.pictures import Preprocessing, open_picture
from secateur.network.images.sampling import stratified_split

COLOUR = Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3)
GREY = Preprocessing((1, 8, 8), (0.0,), (1.0,))


def picture(seed, size=(8, 8), mode="RGB"):
    generator = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8), mode)


@pytest.fixture
def folder(tmp_path):
    """Two classes, 20 and 10 training images, 4 test images each."""
    seed = 0
    for split, counts in (("train", {"cat": 20, "dog": 10}), ("test", {"cat": 4, "dog": 4})):
        for name, count in counts.items():
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                picture(seed).save(tmp_path / split / name / f"{index:02}.png")
                seed += 1
    return tmp_path


def test_digits_splits_partition_the_images_and_keep_the_class_shares():
    from sklearn.datasets import load_digits

    found = load_digits()
    splits = load_images("digits", GREY)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1077, 360, 360]
    names = [name for part in parts for name in part.names]
    assert sorted(map(int, names)) == list(range(1797))
    totals = np.bincount(found.target)
    for part in parts:
        counts = np.bincount(part.labels.numpy(), minlength=10)
        assert np.all(np.abs(counts - len(part) * totals / 1797) <= 1.5)
        rows = [int(name) for name in part.names]
        assert part.labels.tolist() == found.target[rows].tolist()
        grey = part.pixels()[:, 0].numpy() / 255 * 16
        assert np.abs(grey - found.images[rows]).max() <= 16 / 255 / 2 + 1e-6


def test_digits_are_the_same_at_every_load():
    first, second = load_images("digits", GREY), load_images("digits", GREY, seed=5)
    assert first.listing_sha256 == second.listing_sha256
    assert first.test.names == second.test.names


def test_stratified_split_gives_every_class_its_share():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    chosen, rest = stratified_split(labels, 10, 3)
    assert torch.bincount(labels[chosen]).tolist() == [5, 3, 2]
    assert sorted(chosen.tolist() + rest.tolist()) == list(range(100))
    assert stratified_split(labels, 10, 3)[0].tolist() == chosen.tolist()
    assert stratified_split(labels, 10, 4)[0].tolist() != chosen.tolist()


def test_of_more_classes_than_places_chance_decides_which_are_drawn():
    labels = torch.arange(40).repeat(2)
    counts = np.zeros(40)
    for seed in range(400):
        chosen, rest = stratified_split(labels, 8, seed)
        assert sorted(chosen.tolist() + rest.tolist()) == list(range(80))
        assert len(set(labels[chosen].tolist())) == 8
        counts[labels[chosen].numpy()] += 1
    deviation = (400 * 0.2 * 0.8) ** 0.5
    assert np.all(np.abs(counts - 80) < 5 * deviation)


def test_a_folder_is_read_file_by_file(folder):
    splits = load_images(str(folder), COLOUR, validation_share=0.2)
    assert splits.class_names == ("cat", "dog")
    for part in (splits.train, splits.validation, splits.test):
        for name, label, pixels in zip(part.names, part.labels.tolist(), part.pixels(), strict=True):
            assert splits.class_names[label] == name.split("/")[1]
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(folder / name)))


def test_validation_is_carved_by_class_and_seed(folder):
    def names(seed):
        splits = load_images(str(folder), COLOUR, validation_share=0.2, seed=seed)
        assert set(splits.train.names).isdisjoint(splits.validation.names)
        assert len(splits.train) + len(splits.validation) == 30
        assert torch.bincount(splits.validation.labels).tolist() == [4, 2]
        assert any("carved" in note for note in splits.notes)
        return splits.validation.names

    assert names(0) == names(0)
    assert names(0) != names(1)


def test_a_val_folder_is_used_as_it_is(folder):
    for name in ("cat", "dog"):
        (folder / "val" / name).mkdir(parents=True)
        picture(99).save(folder / "val" / name / "only.png")
    splits = load_images(str(folder), COLOUR)
    assert splits.validation.names == ("val/cat/only.png", "val/dog/only.png")
    assert len(splits.train) == 30
    assert not any("carved" in note for note in splits.notes)


def test_the_listing_hash_follows_names_and_labels(folder):
    before = load_images(str(folder), COLOUR).listing_sha256
    assert load_images(str(folder), COLOUR).listing_sha256 == before
    (folder / "train" / "cat" / "00.png").rename(folder / "train" / "dog" / "renamed.png")
    assert load_images(str(folder), COLOUR).listing_sha256 != before


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


def test_too_few_images_to_carve_from(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            picture(1).save(tmp_path / split / name / "0.png")
    with pytest.raises(InputError, match="too few"):
        load_images(str(tmp_path), COLOUR)


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
def test_a_truncated_image_is_named_when_its_pixels_are_read(folder, form):
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


def test_colour_becomes_grey_by_luma():
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


def test_a_picture_of_the_right_size_is_not_resampled():
    source = picture(5)
    assert np.array_equal(COLOUR.to_pixels(source).permute(1, 2, 0).numpy(), np.asarray(source))


def test_normalisation_closed_form():
    preprocessing = Preprocessing((2, 1, 1), (0.2, 0.6), (0.5, 0.25))
    whole = torch.tensor([[[[0]], [[255]]], [[[51]], [[102]]]], dtype=torch.uint8)
    wanted = torch.tensor([[-0.4, 1.6], [0.0, -0.8]])
    assert torch.allclose(preprocessing.normalise(whole).flatten(1), wanted, atol=1e-6)
    assert torch.allclose(preprocessing.normalise(whole / 255).flatten(1), wanted, atol=1e-6)
    assert whole[0, 1, 0, 0] == 255


def test_batches_follow_the_order_asked_for():
    pixels = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    images = images_from_tensor(pixels, torch.arange(10) % 3, Preprocessing((1, 1, 1), (0.0,), (1 / 255,)))
    order = torch.tensor([7, 1, 1, 4, 9])
    parts = list(images.batches(2, order))
    assert [len(labels) for _, labels in parts] == [2, 2, 1]
    assert torch.cat([batch for batch, _ in parts]).flatten().round().tolist() == order.tolist()
    assert torch.cat([labels for _, labels in parts]).tolist() == (order % 3).tolist()
    again = images.subset(torch.tensor([8, 2, 5])).subset(torch.tensor([2, 0]))
    assert again.names == ("5", "8")
    assert again.pixels().flatten().tolist() == [5, 8]


def test_samples_are_seeded_and_stratified():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    images = images_from_tensor(torch.zeros(100, 1, 1, 1), labels, Preprocessing((1, 1, 1), (0.0,), (1.0,)))
    sample = images.sample(20, 1)
    assert torch.bincount(sample.labels).tolist() == [12, 6, 2]
    assert len(set(sample.names)) == 20
    assert images.sample(20, 1).names == sample.names
    assert images.sample(20, 2).names != sample.names
    everything = images.sample(500, 1)
    assert sorted(everything.names) == sorted(images.names)
    assert everything.names != images.names


def test_without_a_cache_the_pixels_are_the_same(folder, monkeypatch):
    indices = torch.tensor([3, 0, 3, 9, 1, 5])
    with_cache = load_images(str(folder), COLOUR).train
    monkeypatch.setattr(images_module, "CACHE_BYTES", 0)
    without = load_images(str(folder), COLOUR).train
    assert torch.equal(with_cache.pixels(indices), without.pixels(indices))
    for path in (folder / "train" / "cat").iterdir():
        picture(12345).save(path)
    now = torch.from_numpy(np.asarray(picture(12345)).copy()).permute(2, 0, 1)
    assert torch.equal(without.pixels(torch.tensor([0]))[0], now), "nothing may be kept beyond the bound"


def test_decoded_pixels_are_kept_within_the_bound(folder):
    images = load_images(str(folder), COLOUR).train
    before = images.pixels(torch.tensor([0])).clone()
    for path in (folder / "train" / "cat").iterdir():
        path.unlink()
    assert torch.equal(images.pixels(torch.tensor([0])), before)


def write_cifar10(place):
    generator = np.random.default_rng(0)
    base = place / "cifar-10-batches-py"
    base.mkdir()
    written = {}
    for name in [*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]:
        data = generator.integers(0, 256, (40, 3072), dtype=np.uint8)
        labels = [index % 10 for index in range(40)]
        (base / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
        written[name] = data.reshape(40, 3, 32, 32)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return written, names


def test_cifar10_in_torchvisions_files(tmp_path, monkeypatch):
    import torchvision

    written, names = write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args, **kwargs: True)
    splits = load_images(f"cifar10:{tmp_path}", Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3))
    assert list(splits.class_names) == names
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (180, 20, 40)
    assert np.array_equal(splits.test.pixels().numpy(), written["test_batch"])
    whole = np.concatenate([written[f"data_batch_{index}"] for index in range(1, 6)])
    rows = [int(name) for name in splits.train.names]
    assert np.array_equal(splits.train.pixels().numpy(), whole[rows])
    assert splits.train.labels.tolist() == [row % 10 for row in rows]


def test_fashion_mnist_in_torchvisions_files(tmp_path):
    base = tmp_path / "FashionMNIST" / "raw"
    base.mkdir(parents=True)
    pixels = {}
    for part, count in (("train", 60), ("t10k", 20)):
        pixels[part] = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (base / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + pixels[part].tobytes()
        )
        (base / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    splits = load_images(f"fashion-mnist:{tmp_path}", Preprocessing((1, 28, 28), (0.0,), (1.0,)))
    assert np.array_equal(splits.test.pixels()[:, 0].numpy(), pixels["t10k"])
    assert splits.test.labels.tolist() == [index % 10 for index in range(20)]
    assert splits.class_names[0] == "T-shirt/top"


def test_a_torchvision_set_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="CIFAR10"):
        load_images(f"cifar10:{tmp_path}", COLOUR)
    with pytest.raises(UsageError, match="cifar10:DIR"):
        load_images("cifar10:", COLOUR)


def test_images_of_another_size_than_the_model(tmp_path, monkeypatch):
    import torchvision

    write_cifar10(tmp_path)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args, **kwargs: True)
    with pytest.raises(InputError, match=r"3x32x32.*3x8x8"):
        load_images(f"cifar10:{tmp_path}", COLOUR)


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


def test_real_jpeg_files_agree_with_torchvision(cifar):
    from torchvision.datasets import ImageFolder

    splits = load_images(str(cifar), Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3))
    peer = ImageFolder(cifar / "test")
    assert list(splits.class_names) == peer.classes
    assert splits.test.labels.tolist() == peer.targets
    for index in (0, 57, 199):
        assert np.array_equal(splits.test.pixels(torch.tensor([index]))[0].permute(1, 2, 0), np.asarray(peer[index][0]))
