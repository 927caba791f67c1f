from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.common.errors import InputError
from secateur.explain.picnn.membership import Membership, fit_membership, with_membership
from secateur.explain.settings import PicnnSettings

CLASSES, EACH = 4, 3


class PlantedClusters(nn.Module):
    """Filters that each see one class's colour: filter ``i`` fires for class ``i // EACH`` and speaks for it alone."""

    def __init__(self, colours):
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES * EACH, 1)
        self.head = nn.Linear(CLASSES * EACH, CLASSES)
        owner = torch.arange(CLASSES * EACH) // EACH
        with torch.no_grad():
            centred = colours - colours.mean(0)
            directions = torch.linalg.pinv(centred @ centred.T + 0.05 * torch.eye(CLASSES)) @ centred
            self.conv.weight.copy_(directions[owner].reshape(-1, 3, 1, 1))
            self.conv.bias.copy_(-(directions[owner] @ colours.mean(0)))
            self.head.weight.copy_(4 * nn.functional.one_hot(owner, CLASSES).T.float())
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def planted(network_of, noise_images):
    images = noise_images(200, (3, 6, 6), CLASSES)
    pixels = images.preprocessing.normalise(images.pixels())
    colours = torch.stack([pixels[images.labels == label].mean((0, 2, 3)) for label in range(CLASSES)])
    return network_of(PlantedClusters(colours), (3, 6, 6), CLASSES), images


@pytest.mark.parametrize("masks", ["bernoulli", "gumbel", "csg"])
def test_planted_clusters_are_found(planted, masks):
    network, images = planted
    with torch.no_grad():
        right = network.logits(images.preprocessing.normalise(images.pixels())).argmax(1) == images.labels
    assert float(right.double().mean()) > 0.95, "the planted network knows its classes"
    _, found = fit_membership(network, images, PicnnSettings(masks=masks, post_hoc_steps=300, batch_size=64))
    right = found.classes_of_filters == torch.arange(CLASSES * EACH) // EACH
    assert found.target == "conv"
    if masks == "gumbel":  # at its temperature gradients come from near ties alone
        assert int(right.sum()) >= 8
        return
    assert bool(right.all())
    assert found.cluster(2).tolist() == [6, 7, 8]


def test_the_network_stays_as_it_is(planted):
    network, images = planted
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    pathway, _ = fit_membership(network, images, PicnnSettings(post_hoc_steps=5))
    for name, value in network.module.state_dict().items():
        assert torch.equal(before[name], value)
        assert torch.equal(before[name], pathway.parts.whole_state()[name])


def test_kept_and_recomputed_features_give_the_same(planted, monkeypatch):
    network, images = planted
    settings = PicnnSettings(post_hoc_steps=20, batch_size=32)
    _, kept = fit_membership(network, images, settings)
    monkeypatch.setattr("secateur.explain.picnn.membership.FEATURE_BYTES", 0)
    _, again = fit_membership(network, images, settings)
    assert torch.allclose(kept.probabilities, again.probabilities, atol=1e-5)


def test_the_seed_decides(planted):
    network, images = planted
    settings = PicnnSettings(post_hoc_steps=10)
    first, same, other = (fit_membership(network, images, settings, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first.probabilities, same.probabilities)
    assert not torch.equal(first.probabilities, other.probabilities)


def test_callers_may_have_turned_gradients_off(planted):
    network, images = planted
    with torch.no_grad():
        _, found = fit_membership(network, images, PicnnSettings(post_hoc_steps=5))
    start = fit_membership(network, images, PicnnSettings(post_hoc_steps=0))[1]
    assert not torch.equal(found.probabilities, start.probabilities)


def test_a_membership_is_saved_and_comes_back(tmp_path, planted):
    network, images = planted
    pathway, found = fit_membership(network, images, PicnnSettings(post_hoc_steps=30))
    found = replace(found, class_names=("a", "<b>", "ü", "d"))
    found.save(tmp_path / "m.safetensors")
    back = Membership.load(tmp_path / "m.safetensors")
    assert torch.equal(back.probabilities, found.probabilities)
    assert (back.target, back.masks, back.class_names, back.details) == (
        found.target, found.masks, found.class_names, found.details,
    )  # fmt: skip
    first = (tmp_path / "m.safetensors").read_bytes()
    found.save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == first
    again = with_membership(network, PicnnSettings(), back)
    assert torch.allclose(again.assignment.probabilities, pathway.assignment.probabilities, atol=1e-6)


def test_another_networks_membership_is_refused(planted, tiny, network_of):
    network, images = planted
    found = fit_membership(network, images, PicnnSettings(post_hoc_steps=1))[1]
    with pytest.raises(InputError, match=r"4 classes and 12 filters, layer3 has 4 and 32"):
        with_membership(network_of(tiny("Padded")), PicnnSettings(), replace(found, target="layer3"))
    with pytest.raises(InputError, match="is of conv by bernoulli masks; expected layer3 by bernoulli"):
        with_membership(network_of(tiny("Padded")), PicnnSettings(), found)
    with pytest.raises(InputError, match="conv by csg"):
        with_membership(network, PicnnSettings(masks="csg"), found)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"does not exist\. Run `secateur train-picnn`"):
        Membership.load(tmp_path / "none.safetensors")
    (tmp_path / "foreign.safetensors").write_bytes(b"nonsense")
    from safetensors.torch import save_file

    for metadata in ({}, {"secateur_membership": "{"}, {"secateur_membership": "{}"}):
        save_file({"probabilities": torch.zeros(2, 2)}, tmp_path / "half.safetensors", metadata)
        with pytest.raises(InputError, match="holds no membership"):
            Membership.load(tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="holds no membership"):
        Membership.load(tmp_path / "foreign.safetensors")


def test_unlabelled_images_are_refused(planted):
    network, images = planted
    with pytest.raises(InputError, match="images with labels"):
        fit_membership(network, replace(images, labels=torch.full((200,), -1)), PicnnSettings())
