"""Networks of which attribution graphs are built."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Normalised(nn.Module):
    """A GroupNorm between two of its layers; the others are read with channels apart."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 1), nn.Conv2d(6, 4, 3)
        self.norm, self.head = nn.GroupNorm(1, 6), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        return self.head(F.relu(self.third(x)).mean((2, 3)))


class OnlyMixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.norm(self.first(x)).mean((2, 3)))


class TwoHeads(nn.Module):
    """Two heads whose class scores are added up."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3)
        self.head1, self.head2 = nn.Linear(5, 4), nn.Linear(6, 4)

    def forward(self, x):
        first = F.relu(self.first(x))
        return self.head1(first.mean((2, 3))) + self.head2(F.relu(self.second(first)).mean((2, 3)))


class Doubled(nn.Module):
    """A sum in which some channels meet themselves: one kernel, one edge."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.head(F.relu(x[:, :1] + x).mean((2, 3)))


class Wide(nn.Module):
    """More kernels than a 16-bit index can name."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 2**15 + 40, 1), nn.Conv2d(2**15 + 40, 4, 1)

    def forward(self, x):
        return self.head(F.relu(self.first(x))).mean((2, 3))


@pytest.fixture
def case(tiny, shake, network_of, noise_images):
    own = {kind.__name__: kind for kind in (Normalised, OnlyMixed, TwoHeads, Doubled, Wide)}

    def build(name, count=7):
        torch.manual_seed(0)
        module = shake(own[name]()) if name in own else tiny(name)
        network, images = network_of(module), noise_images(count, mean=0.4, std=0.3)
        return replace(network, preprocessing=images.preprocessing), images, noise_images(9, seed=5, mean=0.4, std=0.3)

    return build
