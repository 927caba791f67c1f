import pytest
import torch
from torch import nn
from torchvision import models

from coalitions import dense, enumerate_coalitions, inputs, payoff, payoff_name, whole
from secateur.explain.shapley import closed_form as games
from secateur.explain.shapley.explainer import ShapleyExplainer
from secateur.network.graph.execution import run_graph
from secateur.network.graph.trace import trace
from secateur.network.images.images import images_from_tensor
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings
from shapley_cases import CASES


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
