import pytest
import torch

from secateur.explain.agic.neighbours import find_neighbours
from secateur.explain.shapley.explainer import ShapleyExplainer


def test_edges_of_a_linear_network_have_a_closed_form(tiny, network_of, noise_images):
    """Of ``Plain`` the value of channel i to channel j is the convolution of what moved in i with the kernel's slice."""
    network = network_of(tiny("plain"))
    images, background = noise_images(6, seed=1), noise_images(5, seed=2)
    found = find_neighbours(network, images, background, count=8, batch_size=4)
    (x,), (b,) = ([batch for batch, _ in part.batches(9)] for part in (images, background))
    module = network.module
    with torch.no_grad():
        moved = module.conv1(x) - module.conv1(b).mean(0)
        values = torch.zeros(6, 6, 8)
        for channel in range(8):
            alone = torch.zeros_like(moved)
            alone[:, channel] = moved[:, channel]
            values[:, :, channel] = module.conv2(alone).mean((2, 3))
        shares = values / values.abs().sum(2, keepdim=True)
    strength, mean = shares.abs().mean(0), shares.mean(0)
    for kernel in range(6):
        edges = found.incoming["conv2"][kernel]
        assert [edge.kernel for edge in edges] == strength[kernel].argsort(descending=True).tolist()
        for edge in edges:
            assert edge.site == "conv1"
            assert edge.strength == pytest.approx(float(strength[kernel, edge.kernel]), rel=1e-3)
            assert edge.share == pytest.approx(float(mean[kernel, edge.kernel]), abs=1e-4)
        assert sum(edge.strength for edge in edges) == pytest.approx(1, abs=1e-5)
    for kernel in range(8):
        edges = found.outgoing["conv1"][kernel]
        assert [edge.kernel for edge in edges] == strength[:, kernel].argsort(descending=True).tolist()
        assert {edge.site for edge in edges} == {"conv2"}
    assert "conv1" not in found.incoming  # the image feeds it
    assert found.images == 6


def test_both_directions_tell_of_the_same_edges(tiny, network_of, noise_images):
    network = network_of(tiny("padded"))
    found = find_neighbours(network, noise_images(8), noise_images(4, seed=3), count=10**6)
    into = {
        (edge.site, edge.kernel, target, kernel): edge
        for target, kernels in found.incoming.items()
        for kernel, edges in enumerate(kernels)
        for edge in edges
    }
    out = {
        (source, kernel, edge.site, edge.kernel): edge
        for source, kernels in found.outgoing.items()
        for kernel, edges in enumerate(kernels)
        for edge in edges
    }
    assert into.keys() == out.keys()
    for key, edge in into.items():
        assert (edge.share, edge.strength) == pytest.approx((out[key].share, out[key].strength))
    joins = [key for key in into if key[2].endswith("join")]
    assert joins
    assert all(key[1] == key[3] or key[0] != "conv1" for key in joins if key[2] == "layer1.0.join")


def test_links_without_a_closed_form_are_named(network_of, noise_images):
    from torch import nn

    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
    )
    network = network_of(module)
    found = find_neighbours(network, noise_images(4), noise_images(4, seed=1))
    assert "2" in found.unlinked
    assert "2" not in found.incoming
    assert set(found.explainers) == set(ShapleyExplainer(network, noise_images(4)).targets)
