import numpy as np

from secateur.network.images.load import load_images
from secateur.network.images.pictures import Preprocessing

GREY = Preprocessing((1, 8, 8), (0.0,), (1.0,))


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
