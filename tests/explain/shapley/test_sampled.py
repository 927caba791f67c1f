import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import UsageError
from secateur.explain.shapley import sampled as shapley_sampling
from secateur.explain.shapley.explainer import ShapleyExplainer
from secateur.explain.shapley.sampled import EstimateSettings
from secateur.network.graph.execution import run_between, run_graph
from secateur.network.graph.trace import trace

SHAPE = (2, 7, 6)


class ChannelsLast(nn.Module):
    """LayerNorm over the channels of each place."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Normalised(nn.Module):
    """``a``, a norm that mixes channels, ReLU, ``b`` with a BatchNorm of its own, and a head."""

    def __init__(self, norm, width=6):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, width, 3, padding=1), norm, nn.Conv2d(width, 4, 3)
        self.bn, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def behind(self, maps):
        """What ``b`` pays for maps of ``a``."""
        return self.bn(self.b(F.relu(self.norm(maps)))).mean((2, 3))

    def forward(self, x):
        return self.head(F.relu(self.bn(self.b(F.relu(self.norm(self.a(x)))))).mean((2, 3)))


class Shared(nn.Module):
    """Two sources on channels that a softmax mixes, added to a third branch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        y = torch.tanh(self.a(x))
        return self.head(F.relu(y + self.b(y).softmax(1)).mean((2, 3)))


@pytest.fixture
def case(shake, network_of, noise_images):
    def build(module, background=5):
        network = network_of(shake(module), SHAPE, 3)
        return network, noise_images(3, SHAPE, 3, 1).pixels(), noise_images(background, SHAPE, 3, 2)

    return build


def enumerated(worth, count):
    """Shapley values of ``worth(coalition)``, ``[players, channels]``, as the mean over all orders."""
    known = {
        frozenset(some): worth(frozenset(some))
        for size in range(count + 1)
        for some in itertools.combinations(range(count), size)
    }
    values = [torch.zeros_like(known[frozenset()]) for _ in range(count)]
    for some, value in known.items():
        for player in set(range(count)) - some:
            weight = math.factorial(len(some)) * math.factorial(count - len(some) - 1) / math.factorial(count)
            values[player] = values[player] + weight * (known[some | {player}] - value)
    return torch.stack(values)


def by_hand(module, image, background):
    """The values of ``b``'s incoming edges in ``Normalised``, ``[channels, players]``."""
    own, other = module.a(image.unsqueeze(0)), module.a(background)

    def worth(coalition):
        maps = other.clone()
        for channel in coalition:
            maps[:, channel] = own[:, channel]
        return module.behind(maps).mean(0)

    with torch.no_grad():
        return enumerated(worth, own.shape[1]).T


@pytest.mark.parametrize(
    ("make", "few", "many"),
    [(lambda: nn.GroupNorm(2, 6), 0.03, 0.01), (lambda: nn.GroupNorm(1, 6), 0.03, 0.01), (lambda: ChannelsLast(6), 0.15, 0.04)],
    ids=["groups", "one group", "layer norm"],
)  # fmt: skip
@torch.no_grad()
def test_estimates_approach_the_enumeration(case, make, few, many):
    """Off by at most these shares of the values: with 4 permutations, and with 100."""
    network, images, background = case(Normalised(make()))
    wanted = torch.stack([by_hand(network.module, image, background.pixels()) for image in images])
    payoff = network.module.behind(network.module.a(images))
    average = network.module.behind(network.module.a(background.pixels())).mean(0)
    errors = []
    for permutations, tolerance in ((4, few), (100, many)):
        settings = EstimateSettings(background=5, permutations=permutations)
        explainer = ShapleyExplainer(network, background, estimates=settings)
        assert not explainer.inexact
        assert explainer.targets == ("b", "head")
        parts = [found for found in explainer(images) if found.target == "b"]
        got = torch.cat([found.values for found in parts])
        assert [found.start for found in parts] == [0, 1, 2]
        assert {found.explainer for found in parts} == {
            f"shap.PermutationExplainer, {permutations} permutations, background of 5 images"
        }
        assert parts[0].players.tolist() == [list(range(6))] * 4
        assert (got.sum(2) - (payoff - average)).abs().max() < 1e-5
        errors.append(float((got - wanted).norm() / wanted.norm()))
        assert errors[-1] < tolerance
    assert errors[1] < errors[0]


@torch.no_grad()
def test_a_join_of_two_sources_that_something_mixes(case):
    network, images, background = case(Shared())
    explainer = ShapleyExplainer(network, background, estimates=EstimateSettings(5, 200))
    found = torch.cat([found.values for found in explainer(images) if found.target == "join"])
    module = network.module
    own, other = torch.tanh(module.a(images[:1])), torch.tanh(module.a(background.pixels()))

    def worth(coalition):
        first, second = other.clone(), module.b(other)
        for player in coalition:
            if player < 3:
                first[:, player] = own[:, player]
            else:
                second[:, player - 3] = module.b(own)[:, player - 3]
        return F.relu(first + second.softmax(1)).mean((0, 2, 3))

    wanted = enumerated(worth, 6).T
    assert explainer.topology.targets["join"].sources == ("a", "b")
    assert (found[0] - wanted).norm() < 0.02 * wanted.norm()


def test_estimates_of_a_sum_are_the_closed_form(case):
    """Where no players act together any permutation gives the exact values."""
    network, images, background = case(Normalised(nn.Identity()))
    (exact,) = ShapleyExplainer(network, background, targets=["b"])(images)
    explainer = ShapleyExplainer(network, background, targets=["b"])
    game = shapley_sampling.SampledGame(
        explainer.view, explainer.topology, explainer.topology.targets["b"], EstimateSettings(5, 1)
    )
    with torch.no_grad():
        for pixels, done in ((background.pixels(), game.learn), (images, list)):
            values = run_graph(explainer.view, pixels, [node for node, _ in game.readers()])
            for node, read in game.readers():
                read(values[node])
            done()
        got = torch.cat([values for _, values in game.values()])
    assert (got - exact.values).abs().max() < 1e-5


def test_without_settings_they_are_listed_and_left_out(case):
    network, images, background = case(Normalised(nn.GroupNorm(2, 6)))
    explainer = ShapleyExplainer(network, background)
    assert list(explainer.inexact) == ["b"]
    assert explainer.inexact["b"].mixer == "norm (GroupNorm)"
    assert {found.target for found in explainer(images)} == {"head"}


def test_images_that_depend_on_each_other_have_no_estimate(case):
    network, images, background = case(Normalised(nn.BatchNorm2d(6, affine=False, track_running_stats=False)))
    explainer = ShapleyExplainer(network, background, estimates=EstimateSettings())
    assert list(explainer.inexact) == ["b"]
    assert {found.target for found in explainer(images)} == {"head"}


def test_estimates_are_seeded_whatever_the_batch_and_the_memory(case, monkeypatch):
    network, images, background = case(Normalised(nn.GroupNorm(2, 6)))

    def values(seed, parts):
        explainer = ShapleyExplainer(network, background, targets=["b"], estimates=EstimateSettings(4, 2, seed))
        return torch.cat([found.values for part in parts for found in explainer(part)])

    np.random.seed(7)
    expected = np.random.RandomState(7).rand()
    once = values(0, [images])
    assert np.random.rand() == expected  # NumPy's own numbers go on as if nothing had been drawn
    assert torch.equal(values(0, [images]), once)
    assert torch.allclose(values(0, images.split(1)), once, atol=1e-6)
    assert not torch.allclose(values(1, [images]), once, atol=1e-6)
    monkeypatch.setattr(shapley_sampling, "ROW_BYTES", 1)
    assert torch.allclose(values(0, [images]), once, atol=1e-6)


@pytest.mark.parametrize("name", ["background", "permutations"])
def test_counts_must_be_positive(name):
    with pytest.raises(UsageError, match=f"{name} must be at least 1"):
        EstimateSettings(**{name: 0})


def test_only_what_lies_between_is_run(case, monkeypatch):
    network, images, _ = case(Shared())
    view = trace(network.module, network.example())
    nodes = {node.name: node for node in view.graph.nodes}
    wanted = next(node for node in view.graph.nodes if node.name.startswith("relu"))
    known = run_graph(view, images, [nodes["a"], nodes["b"], wanted])
    given = {nodes[name]: known[nodes[name]] for name in ("a", "b")}
    monkeypatch.setattr(nn.Conv2d, "forward", None)
    assert torch.equal(run_between(view, given, [wanted])[wanted], known[wanted])


def test_a_target_with_one_channel_has_that_channel(network_of, shake, noise_images):
    module = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 3), nn.ReLU()),
        *(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)),
    )
    images = noise_images(3)
    explainer = ShapleyExplainer(
        network_of(shake(module)), images, estimates=EstimateSettings(background=2, permutations=1), targets=["2"]
    )
    shapes = {found.values.shape for found in explainer(images.preprocessing.normalise(images.pixels()))}
    assert shapes == {(1, 1, 4)}
