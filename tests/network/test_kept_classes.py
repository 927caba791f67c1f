import pytest
import torch
from torch import nn

from secateur.common.errors import InputError
from secateur.network.images.splits import make_splits
from secateur.network.kept_classes import kept_classes, restrict_images, restrict_network
from secateur.network.load import load_model
from secateur.network.saved import load_network, save_network

NAMES = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("keep", "drop", "kept"),
    [
        (None, None, (0, 1, 2, 3)),
        (("dog", "bee"), None, (1, 3)),
        (None, ("dog", "bee"), (0, 2)),
        (NAMES, None, (0, 1, 2, 3)),
    ],
)
def test_classes_stay_in_the_networks_order(keep, drop, kept):
    assert kept_classes(NAMES, keep, drop) == kept


def test_unknown_names_and_too_few_classes_are_refused():
    with pytest.raises(InputError, match=r"No class is named 'dgo'\. Did you mean dog"):
        kept_classes(NAMES, ("dgo", "bee"), None)
    with pytest.raises(InputError, match="1 of 4 classes would be left"):
        kept_classes(NAMES, ("dog",), None)
    with pytest.raises(InputError, match="0 of 4 classes would be left"):
        kept_classes(NAMES, None, NAMES)


class TwoHeads(nn.Module):
    """Scores that are the sum of two heads, one of them convolutional."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.one(x.mean((2, 3))) + self.two(x).mean((2, 3))


@pytest.mark.parametrize("name", ["Padded", "Inverted", "Dense", "Chain"])
def test_the_restricted_network_gives_the_scores_of_the_kept_classes(tiny, network_of, name):
    network = network_of(tiny(name))
    small = restrict_network(network, (1, 3))
    x = network.example(5, seed=4)
    with torch.no_grad():
        assert torch.allclose(small.logits(x), network.logits(x)[:, [1, 3]], atol=1e-6)
    assert small.class_names == ("class 1", "class 3")
    assert len(small.cuts) == 1
    assert network.cuts == ()


def test_several_heads_are_all_cut(network_of):
    torch.manual_seed(0)
    network = network_of(TwoHeads())
    small = restrict_network(network, (0, 2, 3))
    x = network.example(4)
    with torch.no_grad():
        assert torch.allclose(small.logits(x), network.logits(x)[:, [0, 2, 3]], atol=1e-6)


def test_a_softmax_in_the_network_is_refused(tiny, network_of):
    with pytest.raises(InputError, match=r"The head \(0\.head\) cannot be cut.*a softmax"):
        restrict_network(network_of(nn.Sequential(tiny("Chain"), nn.Softmax(1))), (0, 1))


def test_it_is_saved_and_comes_back(tmp_path, networks_file):
    network = load_model(f"{networks_file}:padded")
    small = restrict_network(network, (0, 2))
    save_network(small, tmp_path, None)
    x = network.example(3)
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path).logits(x), small.logits(x))


def test_images_of_other_classes_go_and_labels_count_anew(noise_images):
    parts = {name: noise_images(60, seed=seed) for seed, name in enumerate(("train", "val", "test"))}
    splits = make_splits(parts, NAMES, ())
    found = restrict_images(splits, (1, 3))
    assert found.class_names == ("bee", "dog")
    for name, part in (("train", found.train), ("val", found.validation), ("test", found.test)):
        wanted = [index for index, label in enumerate(parts[name].labels.tolist()) if label in (1, 3)]
        assert [int(index) for index in part.names] == wanted
        assert part.labels.tolist() == [(1, 3).index(int(parts[name].labels[index])) for index in wanted]
        assert torch.equal(part.pixels(), parts[name].pixels(torch.tensor(wanted)))
    assert found.listing_sha256 != splits.listing_sha256
    assert "bee, dog (2 of 4)" in found.notes[-1]


def test_a_split_without_the_kept_classes_is_named(noise_images):
    images = noise_images(40)
    none = images.subset((images.labels == 0).nonzero().flatten())
    with pytest.raises(InputError, match="The test split has no image"):
        restrict_images(make_splits({"train": images, "val": images, "test": none}, NAMES, ()), (1, 3))
