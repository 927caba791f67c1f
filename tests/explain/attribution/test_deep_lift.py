import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attribution_cases import WINDOWS, Pooled, Residual, change_of_logit, near, summed
from secateur.explain.attribution.attributions import attribute
from secateur.network.graph.trace import trace


def test_branches_share_out_the_change_of_what_they_join(shake, network_of, noise_images):
    """DeepLIFT at a sum: what the stem's shortcut and the branch give is the whole, by hand."""
    module, images = shake(Residual()), noise_images(5)
    found = attribute(network_of(module), images, "deep-lift").layers["outer"]
    x, zero = images.pixels(), torch.zeros_like(images.pixels())
    with torch.no_grad():
        here, there = module.rest(zero), module.rest(x)
        joins = [maps["stem"] + maps["outer"] for maps in (here, there)]
        slope = (F.relu(joins[1]) - F.relu(joins[0])) / (joins[1] - joins[0])
        weight = module.head.weight[images.labels].view(5, 5, 1, 1) / joins[0][0, 0].numel()
        wanted = (weight * slope * (there["outer"] - here["outer"])).sum((2, 3))
    assert near(found, wanted, 1e-4)


@pytest.mark.parametrize("window", WINDOWS)
def test_deep_lift_loses_nothing_in_maxima(window, shake, network_of, noise_images):
    network, images = network_of(shake(Pooled(*window, bias=True))), noise_images(7)
    wanted = change_of_logit(network, images)
    for values in attribute(network, images, "deep-lift").layers.values():
        assert near(values.sum(1), wanted, 1e-4)


def test_captum_alone_does(shake, noise_images):
    """What the rewriting is for; when this fails, captum has mended it."""
    from captum.attr import LayerDeepLift

    module, images = shake(Pooled(3, 2, 1, bias=True)), noise_images(7)
    x = images.pixels()
    traced = trace(module, x[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = LayerDeepLift(traced, traced.first).attribute(x, target=images.labels)
    with torch.no_grad():
        change = (module(x) - module(0 * x)).gather(1, images.labels.unsqueeze(1)).squeeze(1)
    assert not near(found.detach().flatten(1).sum(1), change, 2e-3)


def test_windows_that_do_not_overlap_have_captums_multipliers(shake, network_of, noise_images):
    """But not right behind an activation: there captum's hooks on the tensor between run in the wrong order."""
    from captum.attr import LayerDeepLift

    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.smooth = nn.Conv2d(3, 6, 3), nn.Softplus()
            self.second, self.pool, self.head = nn.Conv2d(6, 4, 3), nn.MaxPool2d(2), nn.Linear(64, 4)

        def forward(self, x):
            return self.head(self.pool(self.second(self.smooth(self.conv(x)))).flatten(1))

    module, images = shake(Once()), noise_images(5)
    found = attribute(network_of(module), images, "deep-lift").layers["conv"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = LayerDeepLift(module, module.second).attribute(
            images.pixels(), target=images.labels, attribute_to_layer_input=True
        )
    assert near(found, summed(wanted.detach()), 1e-3)
