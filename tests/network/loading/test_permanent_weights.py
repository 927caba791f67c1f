"""Networks whose weights are computed from others: loaded, cut, saved and loaded again."""

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model
from secateur.network.loading.permanent_weights import make_permanent
from secateur.pipeline.inputs import load_inputs
from secateur.pipeline.recipe.recipe import Recipe
from secateur.prune import surgery

FILE = '''
import torch
from torch import nn
from torch.nn.utils import parametrize, parametrizations, prune

INPUT_SHAPE = (3, 12, 12)
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Halved(nn.Module):
    """A computation of the author's own."""

    def forward(self, weight):
        return weight / 2 + 0.01


def own(layer):
    parametrize.register_parametrization(layer, "weight", Halved())
    return layer


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.3)
    return layer


def twice(layer):
    return nn.utils.parametrizations.spectral_norm(own(layer))


class Net(nn.Module):
    def __init__(self, wrap=lambda layer: layer):
        super().__init__()
        self.first = wrap(nn.Conv2d(3, 8, 3, padding=1))
        self.blocks = nn.ModuleList(wrap(nn.Conv2d(8, 8, 3, padding=1, bias=False)) for _ in range(2))
        self.bn = nn.BatchNorm2d(8)
        self.hidden = wrap(nn.Linear(8, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.first(x).relu()
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(self.hidden(self.bn(x).mean((2, 3))).relu())


plain = Net
weight_norm = lambda: Net(parametrizations.weight_norm)
spectral_norm = lambda: Net(parametrizations.spectral_norm)
orthogonal = lambda: Net(parametrizations.orthogonal)
old_weight_norm = lambda: Net(nn.utils.weight_norm)
old_spectral_norm = lambda: Net(nn.utils.spectral_norm)
halved = lambda: Net(own)
masked = lambda: Net(pruned)
stacked = lambda: Net(twice)
'''
KINDS = {
    "weight_norm": "weight_norm",
    "spectral_norm": "spectral_norm",
    "orthogonal": "orthogonal",
    "old_weight_norm": "weight_norm",
    "old_spectral_norm": "spectral_norm",
    "halved": "Halved",
    "masked": "torch.nn.utils.prune",
    "stacked": "Halved and spectral_norm",
}
pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def saved(file, tmp_path):
    """The state of a seeded network of a kind in its own form, as a file, and the outputs that its author sees."""

    def build(kind):
        space = {}
        exec(FILE, space)
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = space[kind]()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        module.train()(torch.randn(8, 3, 12, 12))  # power iterations and running statistics
        path = tmp_path / f"{kind}.pth"
        torch.save(module.state_dict(), path)
        return path, module.eval()

    return build


def example(count=3):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_stay_and_weights_are_plain(file, saved, kind):
    weights, original = saved(kind)
    network = load_model(f"{file}:{kind}", str(weights))
    with torch.no_grad():
        expected = original(example())
        assert torch.allclose(network.logits(example()), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    names = {f"{layer}.weight" for layer in ("first", "blocks.0", "blocks.1", "hidden", "head", "bn")}
    assert names <= set(dict(network.module.named_parameters()))
    assert not any("orig" in name or name.endswith(("_g", "_v", "_mask")) for name in network.module.state_dict())
    assert [type(network.module.first), type(network.module.hidden)] == [nn.Conv2d, nn.Linear]
    (note,) = network.notes
    assert note == (
        f"{KINDS[kind]} of first.weight, blocks.0.weight, blocks.1.weight, hidden.weight was made permanent: these are plain "
        "weights from here on."
    )
    copy.deepcopy(network.module)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_cut_as_the_plain_network_is(file, saved, kind, plan_for, tmp_path, masked):
    weights, _ = saved(kind)
    network = load_model(f"{file}:{kind}", str(weights))
    groups = find_groups(network.module, network.example())
    assert [group.name for group in groups if group.locked] == ["head"]
    plan = plan_for(network, round_to=1)
    small = surgery.cut(network, plan)
    with masked(network.module, groups, {part.name: part.removed for part in plan.groups}) as module, torch.no_grad():
        expected = module(example())
    assert any(part.removed for part in plan.groups)
    assert torch.allclose(small.logits(example()), expected, atol=1e-5)
    surgery.save(small, plan, tmp_path / "run")
    assert torch.equal(load_model(str(tmp_path / "run")).logits(example()), small.logits(example()))


def test_files_of_the_older_and_of_the_plain_form_fit(file, saved):
    weights, original = saved("old_weight_norm")
    newer = load_model(f"{file}:weight_norm", str(weights))
    with torch.no_grad():
        assert torch.allclose(newer.logits(example()), original(example()), atol=1e-6)
    weights, original = saved("plain")
    for kind in KINDS:
        network = load_model(f"{file}:{kind}", str(weights))
        with torch.no_grad():
            assert torch.equal(network.logits(example()), original(example())), kind


def test_frozen_weights_stay_parameters():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)).requires_grad_(False)
    make_permanent(layer, torch.randn(2, 3, 8, 8))
    assert not dict(layer.named_parameters())["weight"].requires_grad


class Tied(nn.Module):
    """The parameter under a computed weight is another layer's own weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        nn.utils.parametrizations.spectral_norm(self.first)
        self.second.weight = self.first.parametrizations.weight.original

    def forward(self, x):
        return self.second(self.first(x))


def test_a_shared_parameter_keeps_its_value_in_the_other_layer():
    torch.manual_seed(0)
    module, x = Tied().eval(), torch.randn(5, 6)
    with torch.no_grad():
        expected = module(x)
        (note,) = make_permanent(module, x)
        assert torch.allclose(module(x), expected, atol=1e-6)
    assert note.startswith("spectral_norm of first.weight")


class Drifting(nn.Module):
    """A computation that gives another weight at every call."""

    def __init__(self):
        super().__init__()
        self.calls = itertools.count()

    def forward(self, weight):
        return weight * (1 + next(self.calls))


def test_a_weight_that_changes_from_call_to_call_is_refused():
    layer = nn.Linear(4, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Drifting())
    with pytest.raises(InputError, match="Drifting"):
        make_permanent(nn.Sequential(layer), torch.ones(2, 4))


def test_networks_without_computed_weights_are_left_alone(network_of, networks):
    module = networks.Chain().eval()
    before = {name: id(parameter) for name, parameter in module.named_parameters()}
    assert make_permanent(module, torch.randn(2, 3, 12, 12)) == ()
    assert before == {name: id(parameter) for name, parameter in module.named_parameters()}


def test_the_note_reaches_the_report(file, noise_folder):
    recipe = Recipe().override(model=f"{file}:halved", data=str(noise_folder), epochs=0)
    assert any(note.startswith("Halved of first.weight") for note in load_inputs(recipe).notes)


def test_what_is_computed_may_be_used_elsewhere():
    """``F.linear`` with the computed weight of a layer that is never called."""

    class Borrowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.store = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4, bias=False))

        def forward(self, x):
            return F.linear(x, self.store.weight)

    torch.manual_seed(0)
    module, x = Borrowed().eval(), torch.randn(3, 6)
    with torch.no_grad():
        expected = module(x)
        make_permanent(module, x)
        assert torch.allclose(module(x), expected, atol=1e-6)
