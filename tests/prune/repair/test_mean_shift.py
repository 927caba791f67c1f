from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo_kinds
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.graph.leaf_modules import ZeroPadChannels
from secateur.network.load import load_model
from secateur.network.saved import load_network, save_network
from secateur.prune.repair.repair import repair


def mean_behind(module, name, images):
    """Mean over images and places of what a submodule gives, one number per channel, image by image."""
    caught = []
    handle = module.get_submodule(name).register_forward_hook(lambda _, __, out: caught.append(out.detach().double()))
    with torch.no_grad():
        for pixels in images.pixels():
            module(pixels.unsqueeze(0))
    handle.remove()
    return torch.stack([out[0].flatten(1).mean(1) if out.dim() == 4 else out[0] for out in caught]).mean(0)


@pytest.mark.parametrize(
    ("name", "layer", "units", "behind"),
    [
        ("padded", "layer1.0.conv1", [0, 3, 4], "layer1.0.bn2"),
        ("padded", "layer2.0.conv1", [1, 2, 9], "layer2.0.bn2"),
        ("padded", "conv1", [1, 2, 6], "layer1.0.bn1"),
        ("padded", "layer3.0.conv2", [0, 7, 8, 31], "linear"),
        ("inverted", "blocks.0.layers.0", [0, 5, 23], "blocks.0.layers.7"),
        ("inverted", "stem.0", [2, 3], "blocks.0.layers.1"),
        ("grouped", "grouped", [1], "expand"),
        ("grouped", "stem", [0, 4, 10], "bn1"),
        ("dense", "first", [2, 7], "second"),
        ("dense", "mix", [0, 5], "hidden"),
        ("dense", "hidden", [3, 4, 5], "head"),
        ("gated", "squeeze", [1, 2], "excite"),
        ("chain", "conv1", [0, 1, 5], "bn2"),
        ("plain", "conv1", [0, 4], "conv2"),
    ],
)
def test_what_reads_removed_kernels_keeps_its_mean(tiny, network_of, noise_images, cut_one, name, layer, units, behind):
    network, images = network_of(tiny(name)), noise_images(20)
    pruned = cut_one(network, layer, units)
    repaired, report = repair(network, pruned, images, "mean", batch_size=7)
    wanted = mean_behind(network.module, behind, images)
    without, got = (mean_behind(n.module, behind, images) for n in (pruned, repaired))
    assert float((without - wanted).abs().max()) > 1e-3, "the cut must move the mean, or nothing is proved"
    assert float((got - wanted).abs().max()) < 1e-4
    assert report.kind == "mean"
    assert report.images == 20
    assert report.reestimated == ()
    assert report.compensated


def test_a_padded_shortcut_shows_the_mean_of_what_it_lost(tiny, network_of, noise_images, cut_one):
    """Stream channel c turns up at place pad + c behind the shortcut (option A)."""
    network, images = network_of(tiny("padded")), noise_images(20)
    gone = [1, 2, 6]
    repaired, _ = repair(network, cut_one(network, "conv1", gone), images, "mean")
    original = mean_behind(network.module, "layer2.0.shortcut", images)
    pads = [name for name, child in repaired.module.named_modules() if isinstance(child, ZeroPadChannels)]
    assert len(pads) == 2
    got = mean_behind(repaired.module, pads[0], images)
    places = [4 + channel for channel in gone]
    assert torch.allclose(got[places], original[places], atol=1e-4)
    assert original[places].abs().min() > 1e-3
    edges = [0, 1, 2, 3, 12, 13, 14, 15]
    assert not got[edges].any()


class Constant(nn.Module):
    """Kernels 1 and 4 of the first layer give a constant whatever the image."""

    def __init__(self, activation, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.act = nn.ReLU() if activation else nn.Identity()
        self.conv2 = nn.Conv2d(6, 5, 3, bias=False)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv2(self.act(self.conv1(x)))).mean((2, 3)))


@pytest.mark.parametrize("activation", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_constant_kernels_leave_without_a_trace(shake, network_of, noise_images, cut_one, activation, norm):
    module = shake(Constant(activation, norm))
    with torch.no_grad():
        module.conv1.weight[[1, 4]] = 0
        module.conv1.bias[[1, 4]] = torch.tensor([0.7, 1.3])
    network = network_of(module)
    pruned = cut_one(network, "conv1", [1, 4])
    repaired, _ = repair(network, pruned, noise_images(6), "mean")
    unseen = noise_images(5, seed=9).pixels() * 3 - 1
    with torch.no_grad():
        whole = network.logits(unseen)
        assert torch.allclose(repaired.logits(unseen), whole, atol=1e-5)
        assert not torch.allclose(pruned.logits(unseen), whole, atol=1e-2)


def test_mean_repair_brings_the_network_closer(tiny, network_of, noise_images, plan_for):
    """Not a theorem, but on average over seeds a repair that did harm would show."""
    from secateur.prune.surgery import cut

    gains = []
    for seed in range(6):
        network, images = network_of(tiny("chain", seed)), noise_images(32, seed=seed)
        pruned = cut(network, plan_for(network, 0.7, seed=seed, round_to=1))
        repaired, _ = repair(network, pruned, images, "mean")
        x = images.pixels()
        with torch.no_grad():
            whole = network.logits(x)
            gains.append(
                float((pruned.logits(x) - whole).square().mean() / (repaired.logits(x) - whole).square().mean())
            )
    assert sum(gain > 1 for gain in gains) >= 5
    assert sorted(gains)[3] > 2


class Twice(nn.Module):
    """One convolution reads maps of two sizes."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.again(F.relu(self.first(x))))
        return self.head(F.relu(self.again(F.max_pool2d(x, 2))).mean((2, 3)))


def test_a_reader_of_maps_of_two_sizes(shake, network_of, noise_images, cut_one):
    network = network_of(shake(Twice()))
    groups = find_groups(network.module, network.example())
    if all(group.locked for group in groups):
        return
    pruned = cut_one(network, "first", [1, 4])
    repaired, _ = repair(network, pruned, noise_images(6), "mean")
    assert repaired.logits(network.example()).isfinite().all()


@pytest.mark.parametrize("name", ["shuffle_unit", "res2net_cascade", "response_norm", "c2f"])
def test_a_network_that_selects_channels_loads_after_repair(name, noise_images, random_units, tmp_path):
    network = load_model(f"{zoo_kinds.__file__}:{name}")
    groups = find_groups(network.module, network.example())
    cut = cut_of(groups, random_units(groups))
    small = replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))
    repaired, _ = repair(network, small, noise_images(12, network.input_shape), "mean", batch_size=6)
    save_network(repaired, tmp_path, None)
    again = load_network(tmp_path)
    torch.testing.assert_close(again.logits(again.example()), repaired.logits(repaired.example()))
    torch.testing.assert_close(again.module.state_dict(), repaired.module.state_dict())
