import copy
from dataclasses import replace

import pytest
import torch
from odd_networks import Dropping, InPlace, Plain
from torch import nn

from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.prune.repair.least_squares import ReconstructionSettings
from secateur.prune.repair.reconstruction import reconstruct

ALL_PLACES = ReconstructionSettings(places=10**6)


@pytest.mark.parametrize("name", ["padded", "inverted", "grouped", "dense", "gated", "chain"])
def test_no_layer_fits_worse_than_before_and_the_network_comes_nearer(
    name, tiny, network_of, noise_images, cut_randomly
):
    network = network_of(tiny(name))
    images = noise_images(96)
    small = cut_randomly(network)
    fixed, fits, used = reconstruct(network, small, images, ALL_PLACES)
    assert used == 96
    assert fits
    for fit in fits:
        assert fit.after <= fit.before + 1e-9, fit
    batch = torch.cat([batch for batch, _ in images.batches(96)])
    with torch.no_grad():
        wanted = network.logits(batch)
        before, after = ((net.logits(batch) - wanted).square().mean() for net in (small, fixed))
    assert after < before


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "vgg", "densenet121", "resnext", "mobilenet_v2"])
def test_torchvision_networks_are_fitted(name, large, network_of, noise_images, cut_randomly):
    network = network_of(large(name), (3, 32, 32), 5)
    images = noise_images(24, (3, 32, 32), 5)
    small = cut_randomly(network, share=0.3)
    fixed, fits, _ = reconstruct(network, small, images)
    assert all(fit.after <= fit.before + 1e-6 for fit in fits)
    with torch.no_grad():
        assert torch.isfinite(fixed.logits(fixed.example(4))).all()


def test_with_nothing_cut_nothing_changes(tiny, network_of, noise_images):
    network = replace(network_of(tiny("padded")), cuts=({},))
    fixed, fits, _ = reconstruct(network, network, noise_images(16))
    assert fits == ()
    example = network.example(4)
    with torch.no_grad():
        assert torch.equal(fixed.logits(example), network.logits(example))


def test_what_can_be_made_of_the_rest_comes_back_whole(network_of, noise_images):
    """Every removed kernel is a copy of one that stays, so the readers can make up for all of it."""
    torch.manual_seed(4)
    first, second = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 6, 3, padding=1, bias=False)
    with torch.no_grad():
        first.weight[4:] = first.weight[:4]
    module = nn.Sequential(
        first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    )  # fmt: skip
    network = network_of(module)
    groups = find_groups(network.module, network.example())
    cut = cut_of(groups, {"0": range(4, 8)})
    small = replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))
    fixed, _, _ = reconstruct(network, small, noise_images(64), ReconstructionSettings(ridge=1e-8, places=10**6))
    images = noise_images(16, seed=9).pixels()
    with torch.no_grad():
        wanted = network.logits(images)
        assert (small.logits(images) - wanted).abs().max() > 0.01
        assert (fixed.logits(images) - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_what_writes_in_place_is_fitted_as_what_does_not(shake, network_of, noise_images, cut_by_half):
    one, two = (network_of(shake(kind())) for kind in (InPlace, Plain))
    two.module.load_state_dict(copy.deepcopy(one.module.state_dict()))
    found = [
        reconstruct(network, cut_by_half(network), noise_images(32))[0].module.state_dict() for network in (one, two)
    ]
    for first, second in zip(found[0].values(), found[1].values(), strict=True):
        assert torch.allclose(first, second, atol=1e-5)


def test_a_join_is_seen_behind_what_only_training_changes(shake, network_of, noise_images, cut_by_half):
    network = network_of(shake(Dropping()))
    _, fits, _ = reconstruct(network, cut_by_half(network), noise_images(16))
    joined = {fit.layer: fit.joined for fit in fits}
    assert joined["f.3"]
    assert joined["g.3"]
    assert not joined["f.0"]
