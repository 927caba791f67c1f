from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.common.errors import InputError
from secateur.network.images.load import load_images
from secateur.network.images.predicted_labels import label_images
from secateur.network.images.splits import carve_validation
from secateur.network.load import match_classes

CLASSES = ("ant", "bee", "cat", "dog")


def write(place, count, seed):
    """Pictures of noise around a tint of their own, so that a network is not of one mind about them."""
    place.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        pixels = 0.5 * generator.random((12, 12, 3)) + 0.5 * generator.random(3)
        Image.fromarray((255 * pixels).astype(np.uint8)).save(place / f"{index:03}.png")


@pytest.fixture
def folder(tmp_path):
    """120 training pictures without labels, 3 test pictures of each of four classes."""
    write(tmp_path / "train", 120, 0)
    for seed, name in enumerate(CLASSES, 1):
        write(tmp_path / "test" / name, 3, seed)
    return tmp_path


@pytest.fixture
def torn(tiny, network_of):
    """A network by seed of four classes, none of which it gives to all pictures; it declares no names."""

    def build(seed):
        module = tiny("chain", seed)
        generator = torch.Generator().manual_seed(seed)
        tints = torch.rand(200, 3, 1, 1, generator=generator)
        with torch.no_grad():
            module.head.bias -= module(0.5 * torch.rand(200, 3, 12, 12, generator=generator) + 0.5 * tints).mean(0)
        return replace(network_of(module), class_names=())

    return build


@pytest.fixture
def network(torn):
    return torn(0)


def own_predictions(network, folder, names):
    """Picture by picture, with Pillow and NumPy alone around the module."""
    found = []
    for name in names:
        pixels = torch.from_numpy(np.asarray(Image.open(folder / name)) / np.float32(255)).permute(2, 0, 1)
        with torch.no_grad():
            found.append(int(network.module(pixels.unsqueeze(0)).argmax()))
    return found


def loaded(network, folder, **options):
    splits = load_images(str(folder), network.preprocessing, **options)
    network, splits = match_classes(network, splits)
    return network, label_images(network, splits)


def test_labels_are_the_networks_own_predictions(network, folder):
    raw = load_images(str(folder), network.preprocessing)
    assert set(raw.train.labels.tolist()) == {-1}
    assert len(raw.validation) == 0
    assert raw.unlabelled == ("train", "validation")
    named, splits = loaded(network, folder)
    assert named.class_names == splits.class_names == CLASSES
    assert splits.train.labels.tolist() == own_predictions(network, folder, splits.train.names)
    assert len(set(splits.train.labels.tolist())) > 1, "one answer for all would prove nothing"
    assert splits.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert not splits.train.labelled
    assert splits.test.labelled
    assert any("No labels for the training images" in note for note in splits.notes)
    assert not any("agreement" in note for note in splits.notes)


def test_predictions_count_in_the_order_of_the_outputs_and_given_labels_follow(network, folder):
    declared = ("dog", "ant", "cat", "bee")
    named, splits = loaded(replace(network, class_names=declared), folder)
    assert named.class_names == splits.class_names == declared
    assert splits.train.labels.tolist() == own_predictions(network, folder, splits.train.names)
    for name, label in zip(splits.test.names, splits.test.labels.tolist(), strict=True):
        assert declared[label] == name.split("/")[1]


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ((), ("class 0", "class 1", "class 2", "class 3")),
        (("w", "x", "y", "z"), ("w", "x", "y", "z")),
        (("crane", "hen", "crane", "cock"), ("crane (0)", "hen", "crane (2)", "cock")),
    ],
)
def test_without_any_labels_the_network_names_the_classes(network, tmp_path, declared, named):
    write(tmp_path / "flat", 50, 0)
    network, splits = loaded(replace(network, class_names=declared), tmp_path / "flat")
    assert network.class_names == splits.class_names == named
    assert splits.unlabelled == ("train", "validation", "test")
    assert any("training and test images" in note for note in splits.notes)
    assert any("agreement" in note for note in splits.notes)


def test_validation_is_carved_by_predicted_class(network, folder):
    _, splits = loaded(network, folder)
    carved = carve_validation(splits, 0.2, 0)
    whole = np.bincount(splits.train.labels.numpy(), minlength=4)
    part = np.bincount(carved.validation.labels.numpy(), minlength=4)
    assert part.sum() == 24
    assert np.all(np.abs(part - 0.2 * whole) < 1)
    assert sorted(carved.train.names + carved.validation.names) == sorted(splits.train.names)
    assert not carved.validation.labelled
    assert carve_validation(carved, 0.2, 0) is carved
    _, again = loaded(network, folder)
    assert carve_validation(again, 0.2, 0).validation.names == carved.validation.names
    assert carve_validation(again, 0.2, 1).validation.names != carved.validation.names


def test_a_thousand_classes_need_no_thousand_pictures(network, folder):
    """Classes that no picture was predicted as take no part in the carving."""
    names = tuple(f"class {index}" for index in range(1000))
    _, splits = loaded(network, folder)
    carved = carve_validation(replace(splits, class_names=names), 0.1, 0)
    assert len(carved.validation) == 12


def test_too_few_pictures_to_carve_from(network, tmp_path):
    write(tmp_path / "train", 1, 0)
    write(tmp_path / "test", 3, 1)
    _, splits = loaded(network, tmp_path)
    with pytest.raises(InputError, match="1 training images, too few"):
        carve_validation(splits, 0.1, 0)


def test_data_with_labels_stay_as_they_are(network, tmp_path):
    for split, count in (("train", 8), ("test", 2)):
        for seed, name in enumerate(CLASSES):
            write(tmp_path / split / name, count, seed)
    splits = load_images(str(tmp_path), network.preprocessing)
    assert splits.unlabelled == ()
    assert label_images(network, splits) is splits
    assert carve_validation(splits, 0.1, 0) is splits


def test_the_listing_hash_is_of_the_folder_not_of_the_predictions(torn, folder):
    write(folder / "val", 10, 9)
    first, second = (loaded(torn(seed), folder)[1] for seed in (0, 1))
    assert first.train.labels.tolist() != second.train.labels.tolist()
    assert first.listing_sha256 == second.listing_sha256


def test_progress_counts_every_image_without_labels(network, folder):
    seen = []
    splits = load_images(str(folder), network.preprocessing)
    label_images(network, splits, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (120, 120)
