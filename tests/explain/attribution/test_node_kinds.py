import pytest
from torch import nn
from torch.nn import functional as F

from attribution_cases import PATHS
from secateur.common.errors import InputError
from secateur.explain.attribution.attributions import attribute


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Powered(Normed):
    def forward(self, x):
        return self.head(self.conv(x).pow(2).mean((2, 3)))


def test_what_has_no_rule_is_refused_by_name(tiny, network_of, noise_images):
    images = noise_images(3)
    for method, module, words in (
        ("lrp", tiny("Gated"), "lrp has no rule for Multiply in layer .*; use deep-lift or gap"),
        ("lrp", Normed(), "GroupNorm in layer norm"),
        ("deep-lift", Normed(), "GroupNorm in layer norm; use integrated-gradients or gap"),
        ("deep-lift", Powered(), "pow in layer pow"),
    ):
        with pytest.raises(InputError, match=words):
            attribute(network_of(module), images, method)
    for method in PATHS:
        assert attribute(network_of(Normed()), images, method).layers["conv"].any()
