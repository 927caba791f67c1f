import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.network.graph.trace import ACTIVATIONS, following_norms, reading_points, trace

TINY = ("padded", "inverted", "grouped", "dense", "gated", "chain", "plain")


LARGE = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "efficientnet_b0", "vgg")


class Functional(nn.Module):
    """Every functional form that the view turns into modules."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.conv(x)
        a = self.relu(x.clone())
        b = F.relu6(x) + torch.sigmoid(x)
        b += x.tanh()
        c = F.leaky_relu(x, 0.3) * F.silu(x)
        d = F.gelu(x, approximate="tanh") + F.elu(x, alpha=0.5) + F.hardswish(x)
        a = F.max_pool2d(a, 3, stride=2, padding=1, ceil_mode=True)
        b = F.avg_pool2d(b, 3, 2, 1, ceil_mode=True, count_include_pad=False)
        c = F.adaptive_max_pool2d(c, (5, 5))
        d = F.adaptive_avg_pool2d(d, 5)
        x = torch.cat([torch.add(a, b), c + d], dim=1)
        x = self.relu(F.pad(x[:, ::2], (0, 0, 0, 0, 2, 4)))
        x = F.relu(x, inplace=True)
        return self.head(x.mean((2, 3)) + 1.5)


@pytest.fixture
def subject(tiny, large, shake):
    def build(name):
        if name == "functional":
            torch.manual_seed(0)
            return shake(Functional()), torch.randn(3, 3, 8, 8)
        module = tiny(name) if name in TINY else large(name)
        size = 12 if name in TINY else 32
        return module, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))

    return build


@pytest.mark.parametrize("name", ["functional", *TINY, *LARGE])
def test_the_view_computes_what_the_network_does_and_leaves_it_alone(subject, name):
    module, x = subject(name)
    inplace = {key: child.inplace for key, child in module.named_modules() if hasattr(child, "inplace")}
    state = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        wanted = module(x)
        traced = trace(module)
        again = x.clone()
        assert torch.allclose(traced(again), wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(again, x)
        assert torch.equal(module(x), wanted)
    assert inplace == {key: child.inplace for key, child in module.named_modules() if hasattr(child, "inplace")}
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    assert {key for key, _ in module.named_parameters()} == {key for key, _ in traced.named_parameters()}


@pytest.mark.parametrize("name", ["functional", *TINY, *LARGE])
def test_every_activation_is_a_module_called_once_and_in_place_nowhere(subject, name):
    module, x = subject(name)
    traced = trace(module)
    calls = {}
    for key, child in traced.named_modules():
        if isinstance(child, ACTIVATIONS):
            child.register_forward_hook(lambda *_, key=key: calls.__setitem__(key, calls.get(key, 0) + 1))
            assert not getattr(child, "inplace", False)
    with torch.no_grad():
        traced(x)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    used = [key for key in called if isinstance(traced.get_submodule(key), ACTIVATIONS)]
    assert set(calls) == set(used)
    assert set(calls.values()) == {1} or not used
    left = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert not left & {F.relu, torch.relu, F.relu6, F.silu, torch.cat, F.max_pool2d, F.adaptive_avg_pool2d}


def test_the_shared_relu_of_resnet18_becomes_seventeen(large):
    traced = trace(large("resnet18"))
    assert sum(isinstance(child, nn.ReLU) for child in traced.modules()) >= 17
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    relus = [node.target for node in nodes if isinstance(traced.get_submodule(node.target), nn.ReLU)]
    assert len(relus) == len(set(relus)) == 17


def test_gradients_reach_every_reading_point_of_a_network_with_in_place_operations(tiny):
    traced = trace(tiny("grouped"))
    kept = {}
    for layer, point in reading_points(traced).items():
        traced.get_submodule(point[0]).register_forward_hook(
            lambda _, __, out, layer=layer: kept.__setitem__(layer, out)
        )
    out = traced(torch.randn(2, 3, 12, 12))
    gradients = torch.autograd.grad(out.sum(), list(kept.values()))
    assert set(kept) == {"stem", "reduce", "grouped", "expand", "head"}
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


class Aliased(nn.Module):
    """What an in-place operation changes is read again under its old name, in three ways."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.conv(x)
        if self.kind == "module":
            return self.relu(x) + x.mean()
        if self.kind == "function":
            return F.relu(x, inplace=True) + x.mean()
        x.add_(x.mean())
        return x


@pytest.mark.parametrize("kind", ["module", "function", "method"])
def test_what_was_changed_in_place_stays_changed(shake, kind):
    """The view may say that it cannot, but it must not compute something else."""
    module, x = shake(Aliased(kind)), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    try:
        traced = trace(module)
    except InputError:
        return
    with torch.no_grad():
        assert torch.allclose(traced(x), module(x), atol=1e-6)


def kinds(traced):
    return {layer: type(traced.get_submodule(point[-1])).__name__ for layer, point in reading_points(traced).items()}


def test_reading_points_lie_behind_the_activation_and_before_the_join(tiny):
    assert kinds(trace(tiny("padded"))) == {
        "conv1": "ReLU",
        "layer1.0.conv1": "ReLU",
        "layer1.0.conv2": "BatchNorm2d",
        "layer2.0.conv1": "ReLU",
        "layer2.0.conv2": "BatchNorm2d",
        "layer3.0.conv1": "ReLU",
        "layer3.0.conv2": "BatchNorm2d",
        "linear": "Linear",
    }
    points = reading_points(trace(tiny("padded")))
    assert points["layer1.0.conv2"] == ("layer1.0.bn2",)
    assert kinds(trace(tiny("inverted")))["blocks.0.layers.3"] == "ReLU6"
    assert kinds(trace(tiny("inverted")))["blocks.1.layers.6"] == "BatchNorm2d"
    assert kinds(trace(tiny("dense"))) == {
        "first": "ReLU", "second": "Tanh", "mix": "ReLU", "hidden": "ReLU", "head": "Linear",
    }  # fmt: skip


def test_reading_points_stop_where_a_second_reader_looks_in(subject):
    """In EfficientNet's and the gated network's blocks the activation is read twice, behind it; before it, once."""
    assert kinds(trace(subject("gated")[0]))["conv"] == "SiLU"

    class Peek(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.bn(self.conv(x))
            return self.last(F.relu(y)) + y

    assert kinds(trace(Peek()))["conv"] == "BatchNorm2d"


def test_following_norms_name_the_networks_own_modules(tiny):
    module = tiny("padded")
    found = following_norms(module)
    assert {layer: name for layer, (name, _) in found.items()} == {
        layer: layer.replace("conv", "bn") for layer, child in module.named_modules() if isinstance(child, nn.Conv2d)
    }
    assert all(norm is module.get_submodule(name) for name, norm in found.values())
