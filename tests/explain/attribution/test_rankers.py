import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.explain.attribution import lrp, path_methods, rankers
from secateur.explain.attribution.attributions import METHODS, attribute
from secateur.explain.gap.contributions import contributions
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.network.graph.trace import trace
from secateur.network.images.load import load_images
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings

PATHS = ("conductance", "internal-influence", "integrated-gradients")
DELTAS = ("conductance", "integrated-gradients", "deep-lift")
ROUGH = {"conductance": 0.03, "integrated-gradients": 0.03, "deep-lift": 1e-4}  # steps approximate what a slope gives
FINE = {"conductance": 2e-3}  # captum's first and last step are not quite the ends of the path


class Residual(nn.Module):
    """A stem, one residual block with BatchNorm, a head; ``rest`` runs it from the layers' outputs that are given."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.inner, self.inner_norm = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.outer, self.outer_norm = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4)

    def rest(self, x, **given):
        maps = {}
        maps["stem"] = given.get("stem", F.relu(self.stem(x)))
        maps["inner"] = given.get("inner", F.relu(self.inner_norm(self.inner(maps["stem"]))))
        maps["outer"] = given.get("outer", self.outer_norm(self.outer(maps["inner"])))
        maps["head"] = given.get("head", self.head(F.relu(maps["stem"] + maps["outer"]).mean((2, 3))))
        return maps

    def forward(self, x):
        return self.rest(x)["head"]


class Straight(nn.Module):
    """The same without the shortcut."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)
        self.second, self.hidden, self.head = nn.Conv2d(6, 5, 3), nn.Linear(45, 7), nn.Linear(7, 4)

    def rest(self, x, **given):
        maps = {}
        maps["first"] = given.get("first", F.relu(self.norm(self.first(x))))
        maps["second"] = given.get("second", F.relu(self.second(maps["first"])))
        maps["hidden"] = given.get("hidden", F.relu(self.hidden(maps["second"].flatten(1))))
        maps["head"] = given.get("head", self.head(maps["hidden"]))
        return maps

    def forward(self, x):
        return self.rest(x)["head"]


def summed(values):
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def change_of_logit(network, images):
    x = images.pixels()
    with torch.no_grad():
        change = network.logits(x) - network.logits(torch.zeros_like(x))
    return change.gather(1, images.labels.unsqueeze(1)).squeeze(1)


def near(got, wanted, share):
    return float((got - wanted).abs().max()) <= share * float(wanted.abs().max())


def integral(module, method, layer, pixels, label, steps=1500):
    """The path integral of one image by the midpoint rule, written out."""
    ends = torch.linspace(0, 1, steps + 1).view(-1, 1, 1, 1)
    middles = (ends[1:] + ends[:-1]) / 2
    if method == "integrated-gradients":
        with torch.no_grad():
            here, there = (module.rest(x.unsqueeze(0))[layer] for x in (torch.zeros_like(pixels), pixels))
        path = (here + middles.view(-1, *[1] * (here.dim() - 1)) * (there - here)).requires_grad_()
        logits = module.rest(pixels.expand(steps, -1, -1, -1), **{layer: path})["head"][:, label]
        (gradient,) = torch.autograd.grad(logits.sum(), path)
        return summed((gradient.mean(0) * (there - here)[0]).unsqueeze(0))[0]
    maps = module.rest(middles * pixels)
    (gradient,) = torch.autograd.grad(maps["head"][:, label].sum(), maps[layer])
    if method == "internal-influence":
        return summed(gradient.mean(0).unsqueeze(0))[0]
    with torch.no_grad():
        activation = module.rest(ends * pixels)[layer]
    return summed((gradient * (activation[1:] - activation[:-1])).sum(0).unsqueeze(0))[0]


@pytest.mark.parametrize("method", PATHS)
@pytest.mark.parametrize("kind", [Straight, Residual])
def test_path_methods_are_the_integrals_they_name(method, kind, shake, network_of, noise_images):
    module, images = shake(kind()), noise_images(3)
    found = attribute(network_of(module), images, method, batch_size=24)
    assert list(found.layers) == [
        name for name, child in module.named_modules() if hasattr(child, "weight") and "norm" not in name
    ]
    for layer, values in found.layers.items():
        wanted = torch.stack(
            [
                integral(module, method, layer, x, y)
                for x, y in zip(images.pixels(), images.labels.tolist(), strict=True)
            ]
        )
        assert near(values, wanted, 0.03), layer


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


class Pooled(nn.Module):
    """Maxima right behind an activation, over windows that may overlap, at places that padding makes unlike each other."""

    def __init__(self, size, stride, padding, bias):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(6, 5, 3, padding=1, bias=bias)
        self.pool, self.last = nn.MaxPool2d(size, stride, padding), nn.AdaptiveMaxPool2d(2)
        self.head = nn.Linear(20, 4, bias=bias)

    def forward(self, x):
        return self.head(self.last(F.relu(self.second(self.pool(F.relu(self.first(x)))))).flatten(1))


WINDOWS = [(2, 2, 0), (3, 2, 0), (3, 1, 0), (3, 2, 1)]


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


@pytest.mark.parametrize("window", WINDOWS)
def test_relevance_is_conserved_in_maxima(window, shake, network_of, noise_images):
    network, images = network_of(shake(Pooled(*window, bias=False))), noise_images(7)
    wanted = change_of_logit(network, images)
    for values in attribute(network, images, "lrp").layers.values():
        assert near(values.sum(1), wanted, 1e-3)


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


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 4)
        self.relus = self.make_relus()

    def make_relus(self):
        return [F.relu] * 3

    def forward(self, x):
        x = self.relus[0](self.first(x))
        x = self.relus[1](self.second(x) + x)
        return self.head(self.relus[2](self.third(x)).mean((2, 3)))


class OneEach(Functional):
    def make_relus(self):
        return nn.ModuleList([nn.ReLU(inplace=True) for _ in range(3)])


class Reused(Functional):
    def make_relus(self):
        return nn.ModuleList([nn.ReLU(inplace=True)] * 3)


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


@pytest.mark.parametrize("method", METHODS)
def test_the_digits_network_is_ranked(method, monkeypatch):
    monkeypatch.setattr(rankers, "IMAGES", 20)
    network = load_model(ModelSettings())
    images = load_images("digits", network.preprocessing).train
    scores = rank_kernels(RankingTask(network, images, seed=3), method)
    assert scores.method == method
    assert scores.details["images"] == 20
    assert scores.details["statistic"] == "root_mean_square"
    found = attribute(network, images.sample(20, 3), method)
    for layer, values in found.layers.items():
        assert near(scores.layers[layer], values.double().square().mean(0).sqrt().float(), 1e-4)
        assert scores.layers[layer].dtype == torch.float32
        for label in range(10):
            assert torch.allclose(scores.per_class[layer][label], values[found.labels == label].mean(0), atol=1e-4)
        assert bool(scores.layers[layer].any())


def test_a_class_without_images_has_zero(tiny, network_of, noise_images):
    images = noise_images(10)
    some = images.subset((images.labels != 2).nonzero().flatten())
    found = attribute(network_of(tiny("Chain")), some, "deep-lift").per_class()
    assert all(part.shape[0] == 4 and not part[2].any() and part[0].any() for part in found.values())


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
