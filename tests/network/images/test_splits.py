import pytest
import torch

from secateur.common.errors import InputError
from secateur.network.images.load import load_images
from secateur.network.images.pictures import Preprocessing

COLOUR = Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3)


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


def test_a_val_folder_is_used_as_it_is(folder, picture):
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


def test_too_few_images_to_carve_from(tmp_path, picture):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            picture(1).save(tmp_path / split / name / "0.png")
    with pytest.raises(InputError, match="too few"):
        load_images(str(tmp_path), COLOUR)
