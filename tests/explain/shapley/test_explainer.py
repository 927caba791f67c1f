import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from secateur.common.errors import InputError
from secateur.explain.shapley import closed_form as games
from secateur.explain.shapley.explainer import ShapleyExplainer, ShapleyValues, strongest_edges
from secateur.network.graph.channel_origins import NONE
from secateur.network.graph.execution import run_graph
from secateur.network.graph.topology import GATE, JOIN
from secateur.network.graph.trace import trace
from secateur.network.images.images import images_from_tensor
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings

SHAPE = (2, 7, 6)


class Net(nn.Module):
    """A network from its layers and a function that calls them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


class Scale(nn.Module):
    """A learned factor."""

    def __init__(self, *shape):
        super().__init__()
        self.factor = nn.Parameter(0.5 + torch.rand(*shape))

    def forward(self, x):
        return x * self.factor


def chain(second, before=F.relu, behind=None):
    """Two convolutions with something in between, and a head."""

    def run(m, x):
        y = m.b(before(m.a(x)))
        return m.head(F.relu(y if behind is None else m.behind(y)).mean((2, 3)))

    extra = {} if behind is None else {"behind": behind}
    return Net(
        run, a=nn.Conv2d(2, second.in_channels, 3, padding=1), b=second, **extra, head=nn.Linear(second.out_channels, 3)
    )


def joined(join, width=4, **more):
    """A stem ``a``, ``b`` on top of it, and what joins both."""
    layers = {"a": nn.Conv2d(2, width, 3, padding=1), "b": nn.Conv2d(width, width, 3, padding=1), **more}
    return Net(lambda m, x: m.head(join(m, F.relu(m.a(x)))), **layers, head=nn.Linear(width, 3))


def excited(m, y):
    return y * torch.sigmoid(m.excite(F.relu(m.squeeze(F.adaptive_avg_pool2d(y, 1)))))


def squeeze(width=4):
    return {"squeeze": nn.Conv2d(width, 3, 1), "excite": nn.Conv2d(3, width, 1)}


def shuffled(y):
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def halved(y, before, after):
    """Every second place, and channels of zeros around: a shortcut without parameters."""
    return F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, before, after))


def added_in_place(m, y):
    z = m.b(y)
    z += y
    return F.relu(z, inplace=True).mean((2, 3))


HEAD = {"head": ("b",)}
CASES = {
    "plain": (lambda: chain(nn.Conv2d(5, 4, 3)), {"b": ("a",), **HEAD}),
    "strided": (lambda: chain(nn.Conv2d(5, 4, (3, 2), stride=(2, 3), padding=(1, 0))), {"b": ("a",), **HEAD}),
    "zeros": (lambda: chain(nn.Conv2d(5, 4, 3, padding=(1, 2))), {"b": ("a",), **HEAD}),
    "reflect": (
        lambda: chain(nn.Conv2d(5, 4, 3, stride=2, padding=2, padding_mode="reflect")),
        {"b": ("a",), **HEAD},
    ),
    "circular": (lambda: chain(nn.Conv2d(5, 4, 5, padding=2, padding_mode="circular")), {"b": ("a",), **HEAD}),
    "replicate": (lambda: chain(nn.Conv2d(5, 4, 3, padding=(2, 1), padding_mode="replicate")), {"b": ("a",), **HEAD}),
    "same": (lambda: chain(nn.Conv2d(5, 4, (4, 3), padding="same", dilation=(1, 2))), {"b": ("a",), **HEAD}),
    "same, reflected": (
        lambda: chain(nn.Conv2d(5, 4, (2, 4), padding="same", padding_mode="reflect")),
        {"b": ("a",), **HEAD},
    ),
    "dilated": (lambda: chain(nn.Conv2d(5, 4, 3, padding=1, dilation=(2, 1))), {"b": ("a",), **HEAD}),
    "grouped": (lambda: chain(nn.Conv2d(6, 4, 3, padding=1, groups=2)), {"b": ("a",), **HEAD}),
    "depthwise": (lambda: chain(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4)), {"b": ("a",), **HEAD}),
    "normalised and pooled": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.n2(m.b(F.max_pool2d(F.relu(m.n1(m.a(x))), 2)))).flatten(1)),
            a=nn.Conv2d(2, 5, 3, padding=1), n1=nn.BatchNorm2d(5), b=nn.Conv2d(5, 2, 2, bias=False), n2=nn.BatchNorm2d(2),
            head=nn.Linear(2 * 2 * 2, 3),
        ),
        {"b": ("a",), **HEAD},
    ),
    "norm without a scale": (
        lambda: chain(nn.Conv2d(5, 4, 3), behind=nn.BatchNorm2d(4, affine=False)), {"b": ("a",), **HEAD},
    ),
    "dropout, ReLU6 and Hardswish": (
        lambda: chain(nn.Conv2d(5, 4, 3), before=lambda y: F.hardswish(F.dropout(F.relu6(y), training=False))),
        {"b": ("a",), **HEAD},
    ),
    "PReLU and average pool": (
        lambda: Net(
            lambda m, x: m.head(m.b(F.avg_pool2d(m.act(m.a(x)), 3, 2, 1)).mean((2, 3))),
            a=nn.Conv2d(2, 4, 3), act=nn.PReLU(4, 0.3), b=nn.Conv2d(4, 3, 2), head=nn.Linear(3, 3),
        ),
        {"b": ("a",), **HEAD},
    ),
    "an activation of two readings": (
        lambda: chain(nn.Conv2d(5, 4, 3), before=lambda y: y * torch.sigmoid(1.7 * y)), {"b": ("a",), **HEAD},
    ),
    "flattened": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.hidden(F.max_pool2d(F.relu(m.a(x)), 2).flatten(1)))),
            a=nn.Conv2d(2, 5, 3, padding=1), hidden=nn.Linear(5 * 9, 6), head=nn.Linear(6, 3),
        ),
        {"hidden": ("a",), "head": ("hidden",)},
    ),
    "norm behind a linear layer": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.norm(m.hidden(F.relu(m.a(x)).mean((2, 3)))))),
            a=nn.Conv2d(2, 5, 3), hidden=nn.Linear(5, 6), norm=nn.BatchNorm1d(6), head=nn.Linear(6, 3),
        ),
        {"hidden": ("a",), "head": ("hidden",)},
    ),
    "tokens": (
        lambda: Net(
            lambda m, x: m.head(F.gelu(m.hidden(F.relu(m.a(x)).flatten(2).transpose(1, 2))).mean(1)),
            a=nn.Conv2d(2, 5, 3, stride=2), hidden=nn.Linear(5, 6), head=nn.Linear(6, 3),
        ),
        {"hidden": ("a",), "head": ("hidden",)},
    ),
    "channels last": (
        lambda: Net(
            lambda m, x: m.head((F.gelu(m.up(F.relu(m.a(x)).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2).mean((2, 3))),
            a=nn.Conv2d(2, 5, 3, stride=2), up=nn.Linear(5, 6), head=nn.Linear(6, 3),
        ),
        {"up": ("a",), "head": ("up",)},
    ),
    "residual, ReLU behind": (
        lambda: joined(lambda m, y: F.relu(m.b(y) + y).mean((2, 3))),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "residual, in place": (
        lambda: joined(added_in_place), {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "residual, nothing behind": (
        lambda: joined(lambda m, y: (m.b(y) + y).mean((2, 3))),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "residual, GELU behind": (
        lambda: joined(lambda m, y: F.gelu(y + m.b(y)).mean((2, 3))),
        {"b": ("a",), JOIN: ("a", "b"), "head": (JOIN,)},
    ),
    "residual, norm and ReLU behind": (
        lambda: joined(lambda m, y: F.relu(m.n(m.b(y) + y)).mean((2, 3)), n=nn.BatchNorm2d(4)),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "residual of vectors, norm behind": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.n((lambda y: m.b(y) + y)(F.relu(m.a(x)).mean((2, 3)))))),
            a=nn.Conv2d(2, 4, 3), b=nn.Linear(4, 4), n=nn.BatchNorm1d(4), head=nn.Linear(4, 3),
        ),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "two residuals": (
        lambda: joined(
            lambda m, y: (lambda z: F.relu(m.c(z) + z).mean((2, 3)))(F.relu(m.b(y) + y)), c=nn.Conv2d(4, 4, 1),
        ),
        {"b": ("a",), JOIN: ("b", "a"), "c": (JOIN,), "join, call 2": ("c", JOIN), "head": ("join, call 2",)},
    ),
    "three branches": (
        lambda: joined(lambda m, y: F.relu(m.b(y) + m.c(y) + y).mean((2, 3)), width=4, c=nn.Conv2d(4, 4, 1)),
        {"b": ("a",), "c": ("a",), JOIN: ("b", "c"), "join, call 2": (JOIN, "a"), "head": ("join, call 2",)},
    ),
    "channels swapped and added": (
        lambda: joined(lambda m, y: F.relu(y + shuffled(y)).mean((2, 3))), {JOIN: ("a",), "head": (JOIN,)},
    ),
    "gate": (
        lambda: joined(lambda m, y: excited(m, y).mean((2, 3)), **squeeze()),
        {"squeeze": ("a",), "excite": ("squeeze",), GATE: ("a", "excite"), "head": (GATE,)},
    ),
    "gate, activation behind": (
        lambda: joined(lambda m, y: F.hardswish(excited(m, m.b(y))).mean((2, 3)), **squeeze()),
        {"b": ("a",), "squeeze": ("b",), "excite": ("squeeze",), GATE: ("b", "excite"), "head": (GATE,)},
    ),
    "gate, ReLU behind": (
        lambda: joined(lambda m, y: F.relu(m.b(y) * m.c(y)).mean((2, 3)), c=nn.Conv2d(4, 4, 1)),
        {"b": ("a",), "c": ("a",), GATE: ("b", "c"), "head": (GATE,)},
    ),
    "spatial gate": (
        lambda: joined(lambda m, y: (m.b(y) * torch.sigmoid(m.where(y))).mean((2, 3)), where=nn.Conv2d(4, 1, 3, padding=1)),
        {"b": ("a",), "where": ("a",), GATE: ("b", "where"), "head": (GATE,)},
    ),
    "shuffled": (
        lambda: joined(lambda m, y: m.c(shuffled(F.relu(m.b(y)))).mean((2, 3)), c=nn.Conv2d(4, 4, 3, groups=2)),
        {"b": ("a",), "c": ("b",), "head": ("c",)},
    ),
    "split": (
        lambda: joined(
            lambda m, y: (lambda halves: torch.cat([halves[0], m.c(halves[1])], 1).mean((2, 3)))(m.b(y).chunk(2, 1)),
            c=nn.Conv2d(2, 2, 1),
        ),
        {"b": ("a",), "c": ("b",), "head": ("b", "c")},
    ),
    "concatenated": (
        lambda: joined(
            lambda m, y: m.c(torch.cat([F.relu(m.b(y)), F.max_pool2d(y, 3, 1, 1)], 1)).mean((2, 3)), c=nn.Conv2d(8, 4, 3)
        ),
        {"b": ("a",), "c": ("a", "b"), "head": ("c",)},
    ),
    "read twice": (
        lambda: joined(lambda m, y: m.b2(torch.cat([y, torch.tanh(y), m.b(y)], 1)).mean((2, 3)), b2=nn.Conv2d(12, 4, 3)),
        {"b": ("a",), "b2": ("a", "b"), "head": ("b2",)},
    ),
    "read twice by groups": (
        lambda: joined(lambda m, y: m.c(torch.cat([y, torch.tanh(y)], 1)).mean((2, 3)), c=nn.Conv2d(8, 4, 3, groups=2)),
        {"c": ("a",), "head": ("c",)},
    ),
    "read twice within a group": (
        lambda: joined(
            lambda m, y: m.c(torch.cat([y[:, :2], torch.tanh(y[:, :2]), y[:, 2:], torch.tanh(y[:, 2:])], 1)).mean((2, 3)),
            c=nn.Conv2d(8, 4, 3, groups=2),
        ),
        {"c": ("a",), "head": ("c",)},
    ),
    "depthwise on padded channels": (
        lambda: joined(
            lambda m, y: m.c(halved(y, 1, 2)).mean((2, 3))[:, :4], c=nn.Conv2d(7, 7, 3, padding=1, groups=7)
        ),
        {"c": ("a",), "head": ("c",)},
    ),
    "padded shortcut": (
        lambda: Net(
            lambda m, x: m.head((lambda y: F.relu(m.b(y) + halved(y, 1, 1)))(F.relu(m.a(x))).mean((2, 3))),
            a=nn.Conv2d(2, 2, 3, padding=1), b=nn.Conv2d(2, 4, 3, 2, 1), head=nn.Linear(4, 3),
        ),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "moved by its own mean": (
        lambda: joined(
            lambda m, y: m.c(y * torch.sigmoid(y.mean((2, 3), keepdim=True))).mean((2, 3)), c=nn.Conv2d(4, 4, 1)
        ),
        {"c": ("a",), "head": ("c",)},
    ),
    "blind to shifts": (lambda: joined(lambda m, y: m.b(y).std((2, 3))), {"b": ("a",), "head": ("b",)}),
    "one channel for all": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.up(F.relu(m.a(x)))).mean((2, 3))),
            a=nn.Conv2d(2, 1, 3), up=Scale(4, 1, 1), head=nn.Linear(4, 3),
        ),
        {"head": ("a",)},
    ),
    "one of its channels added to all": (
        lambda: joined(lambda m, y: F.relu(y[:, :1] + y).mean((2, 3))), {JOIN: ("a",), "head": (JOIN,)},
    ),
    "a layer called twice": (
        lambda: joined(lambda m, y: m.c(torch.cat([m.b(y), m.b(F.relu(y - 1))], 1)).mean((2, 3)), c=nn.Conv2d(8, 4, 1)),
        {"b": ("a",), "b, call 2": ("a",), "c": ("b", "b, call 2"), "head": ("c",)},
    ),
    "gate of a vector": (
        lambda: joined(
            lambda m, y: (y * torch.sigmoid(m.h(y.mean((2, 3)))).view(y.size(0), 4, 1, 1).expand_as(y)).mean((2, 3)),
            h=nn.Linear(4, 4),
        ),
        {"h": ("a",), GATE: ("a", "h"), "head": (GATE,)},
    ),
    "residual, channels last": (
        lambda: Net(
            lambda m, x: m.head((lambda y: F.gelu(m.h(y) + y))(F.relu(m.a(x)).permute(0, 2, 3, 1)).mean((1, 2))),
            a=nn.Conv2d(2, 4, 3), h=nn.Linear(4, 4), head=nn.Linear(4, 3),
        ),
        {"h": ("a",), JOIN: ("h", "a"), "head": (JOIN,)},
    ),
    "residual, scaled, channels last inside": (
        lambda: Net(
            lambda m, x: m.head((lambda y: y + m.scale(m.h(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))(m.a(x)).mean((2, 3))),
            a=nn.Conv2d(2, 4, 3), h=nn.Linear(4, 4), scale=Scale(4), head=nn.Linear(4, 3),
        ),
        {"h": ("a",), JOIN: ("a", "h"), "head": (JOIN,)},
    ),
    "residual, PReLU behind": (
        lambda: joined(lambda m, y: m.act(m.b(y) + y).mean((2, 3)), act=nn.PReLU(4, 0.2)),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "a branch without the image": (
        lambda: joined(lambda m, y: (m.b(torch.zeros_like(y)) + y).mean((2, 3))), {JOIN: ("b", "a"), "head": (JOIN,)},
    ),
}  # fmt: skip


@pytest.fixture
def case(shake, network_of, noise_images):
    def build(module, images=3, background=4):
        network, others = network_of(shake(module), SHAPE, 3), noise_images(background, SHAPE, 3, 2, 0.4, 0.3)
        network = dataclasses.replace(network, preprocessing=others.preprocessing)
        return network, inputs(noise_images(images, SHAPE, 3, 1, 0.4, 0.3)), others

    return build


def inputs(images):
    """As the network sees them."""
    return images.preprocessing.normalise(images.pixels())


def dense(found: ShapleyValues, players):
    """``[images, channels, players]``; what belongs to nobody must be zero, and no channel has two values of one player."""
    images, channels, _ = found.values.shape
    own = found.players.expand(channels, -1)
    ordered = own.sort(1).values
    assert not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)).any())
    assert own.shape == found.values.shape[1:]
    whole = torch.zeros(images, channels, players + 1)
    whole.scatter_add_(2, torch.where(own == NONE, players, own).expand(images, -1, -1), found.values)
    assert whole[..., players].abs().max() < 1e-6
    return whole[..., :players]


def payoff_name(explainer, target):
    """The node of what a target pays: a layer's output behind its BatchNorm, a join behind all that acts on it alone."""
    site = explainer.topology.sites[target]
    if site.kind in (JOIN, GATE):
        return site.reading.name
    readers = list(site.node.users)
    norm = [node for node in readers if node.op == "call_module" and len(readers) == 1]
    if norm and isinstance(explainer.view.get_submodule(norm[0].target), nn.BatchNorm2d | nn.BatchNorm1d):
        return norm[0].name
    return site.node.name


def payoff(value, dim):
    """The mean over places, ``[n, C]``."""
    value = value.movedim(dim, 1)
    return value.flatten(2).mean(2) if value.dim() > 2 else value


def enumerate_coalitions(network, explainer, target, sources, image, background):
    """Shapley values ``[channels, players]`` from all coalitions of one image, each run through a float64 copy of the network.

    Players left out show the background images' channels in the sources' maps, and the rest of the network goes on from there.
    """
    view = trace(copy.deepcopy(network.module).double(), network.example().double())
    nodes = {node.name: node for node in view.graph.nodes}
    sites = [explainer.topology.sites[name] for name in sources]
    starts = [nodes[site.node.name] for site in sites]
    wanted = nodes[payoff_name(explainer, target)]
    image, background = image.double().unsqueeze(0), background.double()
    own, other = run_graph(view, image, starts), run_graph(view, background, starts)
    count = sum(site.channels for site in sites)
    assert count <= 8
    coalitions = torch.tensor(
        [[code >> player & 1 for player in range(count)] for code in range(2**count)], dtype=torch.bool
    )
    changes, first = {}, 0
    for site, node in zip(sites, starts, strict=True):
        here = coalitions[:, first : first + site.channels].repeat_interleave(len(background), 0)
        here = here.view(len(here), *[-1 if dim == site.dim else 1 for dim in range(1, own[node].dim())])
        mixed = torch.where(here, own[node], other[node].repeat(len(coalitions), *[1] * (other[node].dim() - 1)))
        changes[node] = lambda _, mixed=mixed: mixed
        first += site.channels
    rows = image.expand(len(coalitions) * len(background), -1, -1, -1)
    (value,) = run_graph(view, rows, [wanted], changes).values()
    worth = payoff(value, explainer.topology.sites[target].dim).view(len(coalitions), len(background), -1).mean(1)
    phi = torch.zeros(worth.shape[1], count, dtype=torch.double)
    for player in range(count):
        for code in range(2**count):
            if not code >> player & 1:
                size = bin(code).count("1")
                weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                phi[:, player] += weight * (worth[code | 1 << player] - worth[code])
    return phi


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_is_the_enumeration_of_all_coalitions(case, name):
    make, expected = CASES[name]
    network, images, background = case(make())
    explainer = ShapleyExplainer(network, background)
    assert not explainer.inexact
    assert {target: explainer.topology.targets[target].sources for target in explainer.targets} == expected
    for found in explainer(images):
        assert found.sources == expected[found.target]
        assert found.explainer == "closed form"
        players = sum(explainer.topology.sites[source].channels for source in found.sources)
        if players > 8:  # too many coalitions
            continue
        got = dense(found, players)
        assert len(got) == len(images)
        for index in range(2):
            wanted = enumerate_coalitions(
                network, explainer, found.target, found.sources, images[index], inputs(background)
            )
            assert wanted.abs().max() > 1e-3
            assert (got[index] - wanted).abs().max() < 1e-5, found.target


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "name",
    ["digits", "resnet20", "resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0", "mobilenet_v3_small"],
)
def test_the_values_sum_to_what_the_payoff_is_above_the_background(request, shake, network_of, name):
    """On every target of real networks; the payoff by a forward pass. In float64, as untrained networks blow rounding up."""
    generator = torch.Generator().manual_seed(0)
    if name == "digits":
        network = load_model(ModelSettings("digits"))
    elif name == "resnet20":
        file = request.getfixturevalue("shared") / "models" / "resnet_cifar.py"
        if not file.is_file():
            pytest.skip(f"{file} is not there")
        network = load_model(ModelSettings(f"{file}:resnet20"))
        shake(network.module)
    else:
        network = network_of(shake(models.get_model(name, weights=None, num_classes=10)), (3, 64, 64), 10)
    request.getfixturevalue("in_float64")  # not before: networks are loaded, and tried, in float32
    network.module.double()
    pixels = torch.rand(7, *network.input_shape, generator=generator)
    background = images_from_tensor(pixels[3:], torch.zeros(4, dtype=torch.long), network.preprocessing)
    explainer = ShapleyExplainer(network, background)
    assert not explainer.inexact
    assert set(explainer.targets) == set(explainer.topology.kernel_targets)
    names = {target: payoff_name(explainer, target) for target in explainer.targets}
    view = trace(network.module, network.example())
    nodes = {node.name: node for node in view.graph.nodes}
    x = network.preprocessing.normalise(pixels)
    with torch.no_grad():
        values = run_graph(view, x, {nodes[node] for node in names.values()})
    seen = set()
    for found in explainer(x[:3]):
        whole = payoff(values[nodes[names[found.target]]], explainer.topology.sites[found.target].dim)
        wanted = whole[:3] - whole[3:].mean(0)
        part = wanted[found.start : found.start + len(found.values)]
        assert (found.values.sum(2) - part).abs().max() < 1e-9 * max(1, float(whole.abs().max())), found.target
        seen.add(found.target)
    assert seen == set(explainer.targets)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["plain", "strided", "zeros", "dilated", "grouped", "flattened"])
def test_shap_finds_the_same_on_chains(case, name):
    """``DeepExplainer((model, layer))`` explains the layer's input; its values, summed over places, are the players'."""
    from shap import DeepExplainer

    class Rest(nn.Module):
        """From the source's map on, each ReLU a module of its own."""

        def __init__(self, view, site):
            super().__init__()
            self.first, self.relu, self.second = view.a, nn.ReLU(), site
            self.pool = nn.MaxPool2d(2) if isinstance(site, nn.Linear) else None

        def forward(self, x):
            y = self.relu(self.start(self.first(x)))
            if self.pool is not None:
                return self.second(self.pool(y).flatten(1))
            return self.second(y).mean((2, 3))

    network, images, background = case(CASES[name][0]())
    target = "hidden" if name == "flattened" else "b"
    explainer = ShapleyExplainer(network, background, targets=[target])
    (found,) = explainer(images)
    rest = Rest(network.module, network.module.get_submodule(target))
    rest.start = nn.Identity()
    attribution = DeepExplainer((rest, rest.start), inputs(background)).shap_values(images, check_additivity=False)
    wanted = torch.as_tensor(attribution).sum((2, 3)).transpose(1, 2)  # [images, channels, players]
    assert (dense(found, wanted.shape[2]) - wanted).abs().max() < 1e-5


def test_only_the_wanted_targets_are_computed(case):
    network, images, background = case(CASES["two residuals"][0]())
    every = {found.target: found for found in ShapleyExplainer(network, background)(images)}
    assert list(every) == ["b", JOIN, "c", "join, call 2", "head"]
    assert ShapleyExplainer(network, background, joins=False).targets == ("b", "c", "head")
    (found,) = ShapleyExplainer(network, background, targets=["c"])(images)
    assert torch.equal(found.values, every["c"].values)
    (found,) = ShapleyExplainer(network, background, targets=["a"])(images)  # what the image's channels give
    assert found.sources == ("image",)
    wanted = enumerate_coalitions(
        network, ShapleyExplainer(network, background), "a", ("image",), images[0], inputs(background)
    )
    assert (dense(found, 2)[0] - wanted).abs().max() < 1e-5
    with pytest.raises(InputError, match=r"no layer or join 'd'.*b, join, c"):
        ShapleyExplainer(network, background, targets=["d"])


def test_the_network_is_left_as_it_was_and_readers_are_told(case):
    network, images, background = case(CASES["two residuals"][0]())
    before = copy.deepcopy(network.module.state_dict())
    explainer = ShapleyExplainer(network, background)
    node, told = explainer.topology.sites["c"].node, []
    assert [found.target for found in explainer(images, {node: told.append})] == list(explainer.targets)
    assert torch.allclose(told[0], run_graph(explainer.view, images, [node])[node])
    assert all(torch.equal(before[name], value) for name, value in network.module.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.module.parameters())


def whole(explainer, images):
    """Target by target, the parts put together."""
    parts = {}
    for found in explainer(images):
        assert found.start == sum(len(part) for part in parts.get(found.target, ()))
        parts.setdefault(found.target, []).append(found.values)
    return {target: torch.cat(found) for target, found in parts.items()}


@pytest.mark.parametrize(
    "name",
    ["normalised and pooled", "grouped", "gate, activation behind", "residual, ReLU behind", "read twice", "tokens"],
)
def test_values_come_in_parts_that_hold_little(case, monkeypatch, name):
    network, images, background = case(CASES[name][0](), images=9)
    explainer = ShapleyExplainer(network, background)
    once = whole(explainer, images)
    for limit in (1, 150, 1000):
        monkeypatch.setattr(games, "VALUE_BYTES", limit)
        sizes = [(found.values.numel() * 4, len(found.values)) for found in explainer(images)]
        assert all(size <= limit or count == 1 for size, count in sizes)
        assert limit > 1 or len(sizes) == len(images) * len(once)
        parts = whole(explainer, images)
        assert all(torch.allclose(parts[target], once[target], atol=1e-6) for target in once)
    halves = [whole(explainer, part) for part in (images[:4], images[4:5], images[5:])]
    for target, values in once.items():
        assert torch.allclose(torch.cat([half[target] for half in halves]), values, atol=1e-6)


def test_two_batches_may_be_read_side_by_side(case):
    network, images, background = case(CASES["two residuals"][0](), images=6)
    explainer = ShapleyExplainer(network, background)
    first, second = whole(explainer, images[:3]), whole(explainer, images[3:])
    for one, other in zip(explainer(images[:3]), explainer(images[3:]), strict=True):
        assert torch.equal(one.values, first[one.target])
        assert torch.equal(other.values, second[other.target])


def test_the_strongest_edges_by_hand():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 7, generator=generator)
    values[1, 2] = 0  # a channel that nothing feeds on this image
    players = torch.stack([torch.randperm(20, generator=generator)[:7] for _ in range(4)])
    given = ShapleyValues("b", ("a",), players, values, 5, "closed form")
    for count in (1, 3, 7, 20):
        found = strongest_edges(given, count)
        assert (found.target, found.sources, found.start, found.explainer) == ("b", ("a",), 5, "closed form")
        assert len(found) == 3
        for image in range(3):
            for channel in range(4):
                row = values[image, channel].tolist()
                size = sum(map(abs, row))
                order = sorted(range(7), key=lambda at, row=row: -abs(row[at]))[:count]
                if size:
                    assert found.players[image, channel].tolist() == [int(players[channel, at]) for at in order]
                shares = [row[at] / size if size else 0.0 for at in order]
                assert found.weights[image, channel].tolist() == pytest.approx(shares, abs=1e-6)
                assert float(found.kept[image, channel]) == pytest.approx(sum(map(abs, shares)), abs=1e-6)
                assert float(found.size[image, channel]) == pytest.approx(size, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(case):
    for make in (CASES["two residuals"][0], CASES["grouped"][0]):
        network, images, background = case(make())
        found = {}
        for device in ("cpu", "cuda"):
            explainer = ShapleyExplainer(network, background, device=device)
            found[device] = {part.target: part.values for part in explainer(images)}
        for name, values in found["cpu"].items():
            assert found["cuda"][name].device.type == "cuda"
            assert torch.allclose(values, found["cuda"][name].cpu(), atol=1e-4)
