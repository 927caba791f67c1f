import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attribution_cases import DELTAS, FINE, ROUGH, Functional, OneEach, Reused, Straight, change_of_logit, near, summed
from secateur.explain.attribution import path_methods
from secateur.explain.attribution.attributions import METHODS, attribute
from secateur.explain.gap.contributions import contributions


@pytest.mark.parametrize("method", DELTAS)
def test_the_kernels_of_every_layer_of_a_chain_share_out_the_change(method, shake, network_of, noise_images):
    network, images = network_of(shake(Straight())), noise_images(5)
    wanted = change_of_logit(network, images)
    for values in attribute(network, images, method).layers.values():
        assert near(values.sum(1), wanted, ROUGH[method])


@pytest.mark.parametrize("method", DELTAS)
@pytest.mark.parametrize(
    ("name", "layer"),
    [("Padded", "conv1"), ("Inverted", "stem.0"), ("Grouped", "stem"), ("Gated", "conv"), ("Dense", "mix")],
)
def test_so_do_those_of_a_layer_that_everything_passes(
    method, name, layer, tiny, network_of, noise_images, monkeypatch
):
    """Sums, concatenations, gates, ReLU6 and tanh behind it, grouped convolutions, BatchNorm."""
    monkeypatch.setattr(path_methods, "STEPS", 300)
    monkeypatch.setattr(path_methods, "STEPS_BY_LAYER", 50)
    network, images = network_of(tiny(name)), noise_images(5)
    found = attribute(network, images, method).layers[layer]
    missing = (found.sum(1) - change_of_logit(network, images)).abs()
    assert bool((missing <= ROUGH[method] * found.abs().sum(1)).all())


def test_a_linear_network_has_gradient_times_change(tiny, network_of, noise_images):
    network, images = network_of(tiny("Plain")), noise_images(6)
    module, x = network.module, images.pixels()
    for method in DELTAS:
        found = attribute(network, images, method).layers
        first = module.conv1(x)
        second = module.conv2(first)
        chosen = module.head(second.mean((2, 3))).gather(1, images.labels.unsqueeze(1)).sum()
        for layer, activation in (("conv1", first), ("conv2", second)):
            (gradient,) = torch.autograd.grad(chosen, activation, retain_graph=True)
            assert near(found[layer], summed(gradient * activation.detach()), FINE.get(method, 1e-4))


class Entangled(nn.Module):
    """A ReLU and a pool read what a shortcut reads as well; scales and shifts are parameters, buffers and plain numbers."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(10, 4)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 5).view(-1, 1, 1))
        self.register_buffer("shift", torch.linspace(-0.2, 0.2, 5).view(-1, 1, 1))

    def forward(self, x):
        x = self.stem(2 * x - 1)
        y = self.scale * self.inner(F.relu(x)) + self.shift
        x = self.shift + F.relu(x + 0.5 * y) * self.scale
        pooled = F.max_pool2d(x, 2) - F.avg_pool2d(x, 2)
        return self.head(torch.cat([pooled.mean((2, 3)), x.sum((2, 3)) / 100], 1))


def test_tensors_read_by_several_and_arithmetic_with_constants(shake, network_of, noise_images):
    network, images = network_of(shake(Entangled())), noise_images(6)
    wanted = change_of_logit(network, images)
    found = {method: attribute(network, images, method).layers for method in ("deep-lift", "lrp")}
    assert near(found["deep-lift"]["stem"].sum(1), wanted, 1e-4)
    for layer, part in contributions(network, images).layers.items():
        assert near(found["lrp"][layer], part.alpha(summed=True), 1e-3), layer


@pytest.mark.parametrize("method", METHODS)
def test_how_an_activation_is_written_does_not_matter(method, shake, network_of, noise_images):
    images = noise_images(6)
    wanted = attribute(network_of(shake(Functional())), images, method).layers
    for kind in (OneEach, Reused):
        found = attribute(network_of(shake(kind())), images, method).layers
        assert all(torch.equal(found[layer], values) for layer, values in wanted.items())
        assert list(found) == list(wanted)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.again, self.head = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.head(F.relu(self.again(F.relu(self.again(x)))).mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_called_twice_counts_both_calls(method, shake, network_of, noise_images):
    """Without biases every method but internal influence gives the logit at each of the two."""
    network, images = network_of(shake(Twice())), noise_images(6)
    found = attribute(network, images, method).layers
    logit = change_of_logit(network, images)
    if method == "internal-influence":  # the path to zero changes no slope of this network
        module = network.module
        first = F.relu(module.again(images.pixels()))
        second = F.relu(module.again(first))
        chosen = module.head(second.mean((2, 3))).gather(1, images.labels.unsqueeze(1)).sum()
        assert near(found["again"], sum(map(summed, torch.autograd.grad(chosen, (first, second)))), 1e-4)
    else:
        assert near(found["again"].sum(1), 2 * logit, FINE.get(method, 1e-3))
        assert near(found["head"].sum(1), logit, FINE.get(method, 1e-3))


class Tokens(nn.Module):
    """A linear layer over places: channels come last."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(3, 6, 3, bias=False), nn.Linear(6, 10, bias=False), nn.Linear(10, 4)

    def forward(self, x):
        return self.head(F.relu(self.wide(self.conv(x).flatten(2).transpose(1, 2)))).mean(1)


@pytest.mark.parametrize("method", ["conductance", "integrated-gradients", "deep-lift", "lrp"])
def test_linear_layers_over_places(method, shake, network_of, noise_images):
    """Homogeneous up to the head: all of them are gradient times activation."""
    module, images = shake(Tokens()), noise_images(4)
    found = attribute(network_of(module), images, method).layers["wide"]
    with torch.no_grad():
        hidden = F.relu(module.wide(module.conv(images.pixels()).flatten(2).transpose(1, 2)))
    assert near(found, hidden.mean(1) * module.head.weight[images.labels].detach(), FINE.get(method, 1e-3))


class Idle(nn.Module):
    """One layer nobody reads, one that reaches another output alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.unread, self.auxiliary = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 2, 1)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        self.unread(x)
        return self.head(x.mean((2, 3))), self.auxiliary(x).mean((2, 3))


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_reach_the_logit_has_zeros(method, shake, network_of, noise_images):
    found = attribute(network_of(shake(Idle())), noise_images(4), method).layers
    assert {layer: values.shape for layer, values in found.items()} == {
        "stem": (4, 4), "unread": (4, 3), "auxiliary": (4, 2), "head": (4, 4)
    }  # fmt: skip
    assert not found["unread"].any()
    assert not found["auxiliary"].any()
    assert found["stem"].any()
    assert found["head"].any()


@pytest.mark.parametrize("method", METHODS)
def test_a_pruned_and_repaired_network_can_be_attributed(method, tiny, network_of, noise_images, plan_for):
    from secateur.prune.repair.repair import repair
    from secateur.prune.surgery import cut

    network, images = network_of(tiny("Padded")), noise_images(6)
    pruned, _ = repair(network, cut(network, plan_for(network, round_to=1)), images, "mean")
    found = attribute(pruned, images, method).layers
    assert all(torch.isfinite(values).all() for values in found.values())
    if method in DELTAS:
        assert near(found["conv1"].sum(1), change_of_logit(pruned, images), ROUGH[method])


@pytest.mark.parametrize("method", METHODS)
def test_the_network_and_the_terminal_stay_as_they_were(method, tiny, network_of, noise_images, recwarn, capsys):
    network = network_of(tiny("Padded"))
    network.module.requires_grad_(False)
    network.module.train()
    before = copy.deepcopy(network.module)
    attribute(network, noise_images(5), method)
    for child, earlier in zip(network.module.modules(), before.modules(), strict=True):
        assert set(vars(child)) == set(vars(earlier))
        assert child.training
        assert not [*child._forward_hooks, *child._forward_pre_hooks, *child._backward_hooks]
    for (name, value), earlier in zip(network.module.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, earlier), name
    assert not any(p.requires_grad or p.grad is not None for p in network.module.parameters())
    assert not list(recwarn)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_size_does_not_matter(method, tiny, network_of, noise_images):
    network, images = network_of(tiny("Padded")), noise_images(5)
    seen = []
    whole = attribute(network, images, method, batch_size=400).layers
    parts = attribute(network, images, method, batch_size=2, progress=lambda *state: seen.append(state)).layers
    assert all(near(parts[layer], values, 1e-4) for layer, values in whole.items())
    assert seen[-1] == (5, 5)


def test_a_class_without_images_has_zero(tiny, network_of, noise_images):
    images = noise_images(10)
    some = images.subset((images.labels != 2).nonzero().flatten())
    found = attribute(network_of(tiny("Chain")), some, "deep-lift").per_class()
    assert all(part.shape[0] == 4 and not part[2].any() and part[0].any() for part in found.values())
