import copy

import pytest
import torch
from torch import nn

from secateur.network.graph.target_layer import find_target
from secateur.network.graph.trace import trace
from secateur.network.graph.two_parts import TwoParts, keeping_statistics, masked, pooled


def split(network):
    view = trace(network.module, network.example())
    point = find_target(view, network.example())
    return TwoParts(view, point.node), point


class AsksForShapes(nn.Module):
    """A head that asks for the number of images, of the input itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.hidden = nn.Linear(6 * 100, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        count = x.shape[0]
        return self.head(torch.relu(self.hidden(torch.relu(self.conv(x)).reshape(count, -1))))


@pytest.mark.parametrize("name", ["Padded", "Inverted", "Grouped", "Dense", "Gated", "Chain", "Plain"])
@pytest.mark.parametrize("count", [1, 5])
def test_the_two_parts_are_the_network(tiny, network_of, name, count):
    network = network_of(tiny(name))
    parts, point = split(network)
    x = network.example(count, seed=3)
    with torch.no_grad():
        features, extra = parts.trunk(x)
        assert features.shape == (count, point.channels, point.height, point.width)
        assert torch.equal(parts.head(features, extra), network.logits(x))


def test_a_head_may_ask_how_many_images_there_are(network_of):
    network = network_of(AsksForShapes())
    parts, _ = split(network)
    assert parts.has_extra
    x = network.example(5)
    with torch.no_grad():
        assert torch.equal(parts(x), network.logits(x))
        assert torch.equal(parts(x[:2]), network.logits(x[:2]))


def test_weights_go_by_the_networks_names_and_are_its_own(tiny, network_of):
    network = network_of(tiny("Padded"))
    parts, _ = split(network)
    state = parts.whole_state()
    for name, value in network.module.state_dict().items():
        assert torch.equal(state[name], value)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.zero_()
    assert float(network.module.conv1.weight.detach().abs().sum()) > 0, "the network given stays as it was"


def test_running_averages_stay_and_batches_still_normalise():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3).train()
    x = 5 + torch.randn(20, 3)
    norm(x)
    before = copy.deepcopy(norm.state_dict())
    with keeping_statistics(norm):
        inside = norm(3 * x + 7)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    expected = (x - x.mean(0)) / x.std(0, correction=0)
    assert torch.allclose(inside, expected, atol=1e-4), "by the batch's own mean and deviation"
    norm(3 * x + 7)
    assert not torch.equal(before["running_mean"], norm.running_mean)


def test_masks_and_means_over_places():
    features = torch.arange(24.0).reshape(2, 3, 2, 2)
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    expected = torch.stack(
        [features[0] * torch.tensor([1, 0, 1]).view(3, 1, 1), features[1] * torch.tensor([0, 1, 0]).view(3, 1, 1)]
    )
    assert torch.equal(masked(features, mask), expected)
    assert torch.equal(masked(features[:, :, 0, 0], mask), features[:, :, 0, 0] * mask)
    assert torch.allclose(pooled(features), features.mean((2, 3)))
    assert torch.equal(pooled(mask), mask)
