import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from secateur.network.graph.channel_origins import NONE
from secateur.network.graph.topology import (
    CONVOLUTION,
    GATE,
    IMAGE,
    JOIN,
    LINEAR,
    Link,
    class_nodes,
    find_topology,
    own_modules,
)
from secateur.network.graph.trace import trace
from secateur.network.load import load_model


class Net(nn.Module):
    """A stem ``a``, what is done with it, and a head."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run, self.a, self.head = run, nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.head(self.run(self, F.relu(self.a(x))).mean((2, 3)))


def topology_of(module, size=12):
    torch.manual_seed(0)
    example = torch.rand(2, 3, size, size)
    return find_topology(trace(module.eval(), example), example)


def links(topology):
    """Target to sources, for those of exact links, and of the others with what mixes."""
    return {name: target.sources for name, target in topology.targets.items()}


def convolution(width=4):
    return nn.Conv2d(4, width, 3, padding=1)


def test_a_chain(tiny):
    topology = topology_of(tiny("chain"))
    assert links(topology) == {"conv1": (IMAGE,), "conv2": ("conv1",), "head": ("conv2",)}
    assert [site.kind for site in topology.sites.values()] == [IMAGE, CONVOLUTION, CONVOLUTION, LINEAR]
    assert [site.channels for site in topology.sites.values()] == [3, 8, 16, 4]
    assert [site.dim for site in topology.sites.values()] == [1] * 4
    assert [name for name, site in topology.sites.items() if site.classes] == ["head"]
    assert topology.links == (Link(IMAGE, "conv1"), Link("conv1", "conv2"), Link("conv2", "head"))
    assert all(link.exact for link in topology.links)
    assert list(topology.kernel_targets) == ["conv2", "head"]
    conv1 = topology.sites["conv1"]
    assert [type(module) for module in own_modules(topology.view, conv1)] == [nn.BatchNorm2d, nn.ReLU]
    (operand,) = topology.targets["conv2"].operands
    assert (operand.node, operand.dim) == (conv1.reading, 1)
    assert operand.origin.players.tolist() == list(range(8))


def test_joins_are_named_after_their_blocks(tiny):
    found = links(topology_of(tiny("padded")))
    assert found == {
        "conv1": (IMAGE,),
        "layer1.0.conv1": ("conv1",),
        "layer1.0.conv2": ("layer1.0.conv1",),
        "layer1.0.join": ("layer1.0.conv2", "conv1"),
        "layer2.0.conv1": ("layer1.0.join",),
        "layer2.0.conv2": ("layer2.0.conv1",),
        "layer2.0.join": ("layer2.0.conv2", "layer1.0.join"),
        "layer3.0.conv1": ("layer2.0.join",),
        "layer3.0.conv2": ("layer3.0.conv1",),
        "layer3.0.join": ("layer3.0.conv2", "layer2.0.join"),
        "linear": ("layer3.0.join",),
    }


def test_a_padded_channel_shows_nobody(tiny):
    _, shortcut = topology_of(tiny("padded")).targets["layer2.0.join"].operands
    assert shortcut.origin.players.tolist() == [NONE] * 4 + list(range(8)) + [NONE] * 4


def test_concatenations_number_the_players_of_all_their_sources(tiny):
    topology = topology_of(tiny("dense"))
    assert links(topology) == {
        "first": (IMAGE,), "second": ("first",), "mix": ("first", "second"), "hidden": ("mix",), "head": ("hidden",),
    }  # fmt: skip
    assert topology.targets["mix"].operands[0].origin.players.tolist() == list(range(16))
    (flat,) = topology.targets["hidden"].operands
    assert flat.origin.players.tolist() == [channel for channel in range(8) for _ in range(9)]


def test_concatenations_in_another_order_than_the_networks():
    topology = topology_of(
        Net(lambda m, y: m.c(torch.cat([m.b(y), y, y[:, 1:3]], 1)), b=convolution(2), c=nn.Conv2d(8, 4, 1))
    )
    (operand,) = topology.targets["c"].operands
    assert operand.origin.sources == ("a", "b")
    assert operand.origin.players.tolist() == [4, 5, 0, 1, 2, 3, 1, 2]


def test_squeeze_and_excitation_is_a_gate_and_a_swish_is_none(tiny):
    found = topology_of(tiny("gated"))
    assert links(found) == {
        "conv": (IMAGE,), "squeeze": ("conv",), "excite": ("squeeze",), GATE: ("conv", "excite"), "last": (GATE,),
        "head": ("last",),
    }  # fmt: skip
    assert found.sites[GATE].kind == GATE
    swish = topology_of(Net(lambda m, y: m.b(y * torch.sigmoid(y)), b=convolution()))
    assert links(swish) == {"a": (IMAGE,), "b": ("a",), "head": ("b",)}
    assert all(link.exact for link in swish.links)
    behind_norm = topology_of(
        Net(lambda m, y: m.b((lambda z: z * torch.sigmoid(z))(m.norm(y))), norm=nn.GroupNorm(2, 4), b=convolution())
    )
    assert links(behind_norm) == {"a": (IMAGE,), "b": ("a",), "head": ("b",)}


def test_a_shuffle_says_which_channel_went_where():
    def shuffle(y):
        n, c, h, w = y.shape
        return y.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    topology = topology_of(Net(lambda m, y: m.c(shuffle(m.b(y))), b=convolution(8), c=nn.Conv2d(8, 4, 1)))
    (operand,) = topology.targets["c"].operands
    assert operand.origin.sources == ("b",)
    assert operand.origin.players.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("make", "mixer"),
    [
        (lambda: Net(lambda m, y: m.b(m.mixing(y)), mixing=nn.GroupNorm(2, 4), b=convolution()), "mixing (GroupNorm)"),
        (
            lambda: Net(
                lambda m, y: m.b(m.mixing(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
                mixing=nn.LayerNorm(4), b=convolution(),
            ),
            "mixing (LayerNorm)",
        ),
        (lambda: Net(lambda m, y: m.b(y - y.mean(1, keepdim=True)), b=convolution()), "sub"),
        (lambda: Net(lambda m, y: m.b(y * y.softmax(1)), b=convolution()), "softmax"),
        (
            lambda: Net(lambda m, y: m.b(m.mixing(y)), mixing=nn.LocalResponseNorm(3), b=convolution()),
            "mixing (LocalResponseNorm)",
        ),
        (
            lambda: Net(
                lambda m, y: m.b(m.mixing(y)), mixing=nn.BatchNorm2d(4, track_running_stats=False), b=convolution()
            ),
            "mixing (BatchNorm2d)",
        ),
        (lambda: Net(lambda m, y: m.b(y), b=nn.ConvTranspose2d(4, 4, 3)), "b (ConvTranspose2d)"),
    ],
    ids=["group norm", "layer norm", "minus its mean", "softmax", "local response", "batch statistics", "transposed"],
)  # fmt: skip
def test_what_mixes_channels_is_named(make, mixer):
    topology = topology_of(make())
    inexact = [link for link in topology.links if not link.exact]
    assert inexact
    assert {link.source for link in inexact} == {"a"}
    assert all(mixer in link.mixer for link in inexact)
    assert topology.targets["head"].exact


@pytest.mark.parametrize("seed", range(6))
def test_the_greatest_of_two_channels_shows_neither_alone(seed):
    """A single place may hide that the other channel counts as well."""
    net = Net(lambda m, y: m.b(y.mean((2, 3), keepdim=True).unflatten(1, (2, 2)).amax(2)), b=nn.Conv2d(2, 4, 1))
    torch.manual_seed(seed)
    net.a.reset_parameters()
    assert not topology_of(net).targets["b"].exact


def test_what_is_blind_to_a_shift_still_shows_its_channel():
    topology = topology_of(Net(lambda m, y: m.b(y).std((2, 3), keepdim=True), b=convolution()))
    assert topology.targets["head"].operands[0].origin.players.tolist() == [0, 1, 2, 3]


def test_a_norm_over_tokens_is_not_the_layers_own():
    """BatchNorm1d behind a linear layer on tokens normalises the second dimension, which are the tokens."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h, self.n = nn.Conv2d(3, 4, 6, 6), nn.Linear(4, 5), nn.BatchNorm1d(4)
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            tokens = self.a(x).flatten(2).transpose(1, 2)
            return self.head(self.n(self.h(tokens)).mean(1))

    topology = topology_of(Tokens())
    site = topology.sites["h"]
    assert (site.dim, site.channels, site.reading) == (2, 5, site.node)
    assert links(topology) == {"a": (IMAGE,), "h": ("a",), "head": ("h",)}


def test_layers_called_again_and_layers_that_do_not_count():
    def run(m, y):
        m.unused(y)
        return m.b(F.relu(m.b(y)))

    topology = topology_of(Net(run, b=convolution(), unused=convolution()))
    assert links(topology) == {"a": (IMAGE,), "b": ("a",), "b, call 2": ("b",), "head": ("b, call 2",)}


def test_a_branch_that_reads_only_constants_has_no_links():
    topology = topology_of(Net(lambda m, y: m.b(torch.zeros_like(y)) + y, b=convolution()))
    assert links(topology) == {"a": (IMAGE,), "b": (), JOIN: ("b", "a"), "head": (JOIN,)}
    assert list(topology.kernel_targets) == [JOIN, "head"]


def test_the_image_may_be_read_beside_a_layer():
    topology = topology_of(Net(lambda m, y: m.b(y), b=convolution()))
    assert list(topology.kernel_targets) == ["b", "head"]

    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.b(torch.cat([x, self.a(x)], 1)).mean((2, 3)))

    topology = topology_of(Skipping())
    assert topology.targets["b"].sources == (IMAGE, "a")
    assert list(topology.kernel_targets) == ["head"]


def test_several_heads_are_all_classes():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.first, self.second = nn.Conv2d(3, 4, 1), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            y = F.relu(self.a(x)).mean((2, 3))
            return 0.5 * (self.first(y) + self.second(y))

    topology = topology_of(Two())
    assert [name for name, site in topology.sites.items() if site.classes] == ["first", "second", "join"]
    assert {node.name for node in class_nodes(topology.view)} == {"first", "second"}


@pytest.mark.parametrize(
    ("name", "sites", "joins", "gates"),
    [("resnet18", 30, 8, 0), ("mobilenet_v2", 64, 10, 0), ("densenet121", 122, 0, 0), ("shufflenet_v2_x1_0", 58, 0, 0)],
)
def test_real_networks_are_exact_everywhere(name, sites, joins, gates):
    """Every convolution, linear layer and residual sum is a site, and nothing else is; counted in the modules."""
    module = models.get_model(name, weights=None)
    topology = topology_of(module, 64)
    layers = [child for child in module.modules() if isinstance(child, nn.Conv2d | nn.Linear)]
    kinds = [site.kind for site in topology.sites.values()]
    assert kinds.count(CONVOLUTION) + kinds.count(LINEAR) == len(layers)
    assert (len(kinds), kinds.count(JOIN), kinds.count(GATE)) == (sites, joins, gates)
    assert all(link.exact for link in topology.links)


def test_the_digits_network():
    network = load_model("digits")
    topology = find_topology(trace(network.module, network.example()), network.example())
    joins = {name: sources for name, sources in links(topology).items() if topology.sites[name].kind == JOIN}
    assert joins == {
        "block1.join": ("block1.conv2", "stem.0"),
        "block2.join": ("block2.conv2", "block2.shortcut.0"),
        "block3.join": ("block3.conv2", "block2.join"),
    }
    assert all(link.exact for link in topology.links)
