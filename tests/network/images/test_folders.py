"""Which files a data folder holds: nothing is opened, so empty files do."""

import pytest

from secateur.common.errors import InputError
from secateur.network.images.folders import list_folder


@pytest.fixture
def tree(tmp_path):
    """Make empty files below a folder of data, and give the folder."""

    def grow(*paths):
        root = tmp_path / "data"
        root.mkdir(exist_ok=True)
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        return root

    return grow


def names(root, split):
    return [path.relative_to(root).as_posix() for path in split.files]


TEST = ("test/cat/1.png", "test/dog/2.png")


def test_pictures_directly_in_train_have_no_labels(tree):
    root = tree("train/b.png", "train/a.JPG", "train/.hidden.png", "train/notes.txt", *TEST)
    listing = list_folder(root)
    assert names(root, listing.splits["train"]) == ["train/a.JPG", "train/b.png"]
    assert listing.splits["train"].labels is None
    assert listing.class_names == ("cat", "dog")
    assert listing.splits["test"].labels == (0, 1)
    assert set(listing.splits) == {"train", "test"}


@pytest.mark.parametrize("unlabelled", ["train", "val", "test"])
def test_any_one_split_may_be_without_labels(tree, unlabelled):
    paths = [f"{split}/{name}/1.png" for split in {"train", "val", "test"} - {unlabelled} for name in ("cat", "dog")]
    listing = list_folder(tree(f"{unlabelled}/1.png", *paths))
    assert listing.class_names == ("cat", "dog")
    assert {name for name, split in listing.splits.items() if split.labels is None} == {unlabelled}


def test_folders_in_a_split_are_classes_however_deep_their_pictures_lie(tree):
    root = tree("train/cat/2024/01/1.png", "train/dog/2.png", *TEST)
    listing = list_folder(root)
    assert listing.class_names == ("cat", "dog")
    assert names(root, listing.splits["train"]) == ["train/cat/2024/01/1.png", "train/dog/2.png"]


def test_folders_without_pictures_beside_pictures_are_no_classes(tree):
    listing = list_folder(tree("train/1.png", "train/empty/readme.txt", "train/.cache/2.png", *TEST))
    assert listing.splits["train"].labels is None


def test_no_split_need_have_labels(tree):
    listing = list_folder(tree("train/1.png", "val/2.png", "test/3.png"))
    assert listing.class_names == ()
    assert all(split.labels is None for split in listing.splits.values())


def test_a_folder_of_pictures_only_is_split_by_the_seed(tree):
    root = tree(*(f"{index:02}.png" for index in range(50)))

    def drawn(seed):
        listing = list_folder(root, seed)
        assert set(listing.splits) == {"train", "test"}
        train, test = (names(root, listing.splits[name]) for name in ("train", "test"))
        assert sorted(train + test) == [f"{index:02}.png" for index in range(50)]
        assert (len(test), test) == (10, sorted(test))
        assert any("10 of 50" in note and f"seed {seed}" in note for note in listing.notes)
        return test

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


REFUSED = {
    "pictures beside class folders": (("train/a.png", "train/b.png", "train/cat/1.png", *TEST), r"'a\.png'.*'cat'"),
    "the same in test": (("train/a.png", "test/b.png", "test/cat/1.png"), r"test holds 1 picture .*'b\.png'.*'cat'"),
    "pictures beside folders, no splits": (("a.png", "cat/1.png"), r"'a\.png'.*'cat'.*train/ and test/"),
    "classes without splits": (("cat/1.png", "dog/2.png"), "no train/ folder"),
    "nothing": ((), "no train/ folder"),
    "no test": (("train/a.png",), "no test/ folder"),
    "train without pictures": (("train/readme.txt", *TEST), r"no class folders.*IMAGE for images without labels"),
    "a class folder without pictures": (("train/cat/readme.txt", *TEST), "'dog'"),
    "an empty class": (("train/a.png", "test/cat/readme.txt", "test/dog/1.png"), "test/cat holds no image"),
    "classes that differ": (("train/a.png", "val/cat/1.png", *TEST), r"val.*'dog'"),
    "one folder more": (("train/images/a.png", *TEST), r"'images'.*pictures without labels directly"),
    "too few": (("a.png", "b.png", "c.png", "d.png"), "4 pictures, too few"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_named(tree, what):
    paths, words = REFUSED[what]
    with pytest.raises(InputError, match=words):
        list_folder(tree(*paths))


def test_at_most_five_of_many_pictures_are_named(tree):
    root = tree("train/cat/1.png", *(f"train/{index:03}.png" for index in range(200)), *TEST)
    with pytest.raises(InputError, match=r"200 pictures .*'004\.png', …\)") as caught:
        list_folder(root)
    assert "005" not in str(caught.value)
