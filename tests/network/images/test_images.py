import numpy as np
import torch

from secateur.network.images import images as images_module
from secateur.network.images.images import images_from_tensor
from secateur.network.images.load import load_images
from secateur.network.images.pictures import Preprocessing

COLOUR = Preprocessing((3, 8, 8), (0.0,) * 3, (1.0,) * 3)


GREY = Preprocessing((1, 8, 8), (0.0,), (1.0,))


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


def test_without_a_cache_the_pixels_are_the_same(folder, monkeypatch, picture):
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
