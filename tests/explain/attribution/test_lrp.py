import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attribution_cases import WINDOWS, Pooled, change_of_logit, near
from secateur.explain.attribution import lrp
from secateur.explain.attribution.attributions import attribute
from secateur.explain.gap.contributions import contributions


@pytest.mark.parametrize("window", WINDOWS)
def test_relevance_is_conserved_in_maxima(window, shake, network_of, noise_images):
    network, images = network_of(shake(Pooled(*window, bias=False))), noise_images(7)
    wanted = change_of_logit(network, images)
    for values in attribute(network, images, "lrp").layers.values():
        assert near(values.sum(1), wanted, 1e-3)


def backward_by_rule(relevance, weight, values, outputs, epsilon=lrp.EPSILON):
    """The epsilon rule of a linear layer: ``R_i = a_i sum_j w_ji R_j / (z_j + epsilon sign z_j)``."""
    stabilised = outputs + epsilon * torch.where(outputs < 0, -1.0, 1.0)
    return values * ((relevance / stabilised) @ weight)


@pytest.mark.parametrize("activation", [F.relu, torch.tanh, torch.sigmoid, F.silu])
def test_lrp_is_the_epsilon_rule(activation, shake, network_of, noise_images):
    """By hand on the convolution as a matrix: activations hand relevance on, biases absorb some."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.second = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 5, 3)
            self.head = nn.Linear(5, 4)

        def forward(self, x):
            return self.head(activation(self.second(activation(self.conv(x)))).flatten(1))

    module, images = shake(Small()), noise_images(6)
    found = attribute(network_of(module), images, "lrp").layers
    with torch.no_grad():
        first = activation(module.conv(images.pixels())).flatten(1)  # 4 kernels of 9 places, all that one output reads
        weight = module.second.weight.flatten(1)
        before = first @ weight.T + module.second.bias
        second = activation(before)
        logits = module.head(second)
        top = torch.zeros_like(logits).scatter(
            1, images.labels.unsqueeze(1), logits.gather(1, images.labels.unsqueeze(1))
        )
        below = backward_by_rule(top, module.head.weight, second, logits)
        lowest = backward_by_rule(below, weight, first, before)
    assert near(found["head"], top, 1e-4)
    assert near(found["second"], below, 1e-4)
    assert near(found["conv"], lowest.view(6, 4, 9).sum(2), 1e-3)


@pytest.mark.parametrize("name", ["Chain", "Padded", "Grouped"])
def test_lrp_with_relu_alone_is_gradient_times_activation(name, tiny, network_of, noise_images):
    """Ancona et al. 2018, proposition 1; with sums, padded channels and BatchNorm, folded or not."""
    network, images = network_of(tiny(name)), noise_images(6)
    found = attribute(network, images, "lrp").layers
    for layer, part in contributions(network, images).layers.items():
        assert near(found[layer], part.alpha(summed=True), 1e-3), layer


def test_relevance_is_conserved_where_branches_join(shake, network_of, noise_images):
    """No biases: what reaches the stem is the logit, though the shortcut is a slice and a padding."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 8, 3, 2, 1, bias=False)
            self.side, self.head = nn.Conv2d(8, 8, 1, bias=False), nn.Linear(16, 4, bias=False)

        def forward(self, x):
            x = F.relu(self.stem(x))
            x = F.relu(self.branch(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
            return self.head(torch.cat([x, F.relu(self.side(x))], 1).mean((2, 3)))

    network, images = network_of(shake(Joined())), noise_images(6)
    found = attribute(network, images, "lrp").layers
    with torch.no_grad():
        logit = network.logits(images.pixels()).gather(1, images.labels.unsqueeze(1)).squeeze(1)
    assert near(found["stem"].sum(1), logit, 1e-3)
    assert near(found["head"].sum(1), logit, 1e-5)
