import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional as F

from secateur.explain.agic.node_features import (
    COMPONENTS,
    MAP_FEATURES,
    map_features,
    parameter_features,
    principal_components,
)
from secateur.network.graph.topology import find_topology
from secateur.network.graph.trace import trace


@pytest.fixture
def features_of():
    """Of a module, by site: its parameter features."""

    def find(module, shape=(3, 12, 12)):
        example = torch.randn(1, *shape)
        view = trace(module.eval(), example)
        return {name: parameter_features(view, site) for name, site in find_topology(view, example).sites.items()}

    return find


def main_directions(kernels):
    """scikit-learn's components, each turned to where its largest coordinate is positive."""
    rows = kernels.detach().flatten(1).double().numpy()
    found = PCA(min(COMPONENTS, *rows.shape), svd_solver="full").fit_transform(rows)
    signs = np.sign(found[np.abs(found).argmax(0), np.arange(found.shape[1])])
    return np.pad(found * signs, ((0, 0), (0, COMPONENTS - found.shape[1])))


def test_a_kernel_is_told_by_its_weights_and_its_norm(tiny, features_of):
    module = tiny("chain")
    found = features_of(module)
    for name, norm in (("conv1", module.bn1), ("conv2", module.bn2)):
        kernels = module.get_submodule(name).weight.detach().double()
        for index, kernel in enumerate(kernels):
            weights = kernel.flatten().tolist()
            mean = sum(weights) / len(weights)
            wanted = [
                sum(map(abs, weights)),
                math.sqrt(sum(weight**2 for weight in weights)),
                mean,
                math.sqrt(sum((weight - mean) ** 2 for weight in weights) / len(weights)),
                float(norm.weight[index]),
                float(norm.bias[index]),
            ]
            assert found[name][index, :6].tolist() == pytest.approx(wanted, rel=1e-5)
        assert np.allclose(found[name][:, 6:], main_directions(kernels), atol=1e-5)
    assert found["head"][:, 4:6].tolist() == [[1, 0]] * 4  # no BatchNorm behind it


def test_joins_have_no_parameters(tiny, features_of):
    found = features_of(tiny("padded"))
    assert found["layer2.0.join"].shape == (16, 0)
    assert found["layer2.0.conv2"].shape == (16, 6 + COMPONENTS)


def test_transposed_convolutions_are_told_by_output(features_of):
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.head = nn.ConvTranspose2d(3, 5, 2, 2), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(F.relu(self.up(x)).mean((2, 3)))

    module = Growing()
    found = features_of(module)["up"]
    assert torch.allclose(found[:, 0], module.up.weight.detach().abs().sum((0, 2, 3)))


@pytest.mark.parametrize("shape", [(40, 30), (12, 200), (3, 5), (1, 4), (6, 1)])
def test_main_directions_are_those_of_scikit_learn(shape):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = principal_components(rows, COMPONENTS)
    assert found.shape == (shape[0], COMPONENTS)
    if len(rows) > 1:
        assert np.allclose(found, main_directions(rows), atol=1e-9)
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    assert bool((largest >= 0).all())


def test_large_layers_are_close_and_leave_the_seed_alone():
    """Beyond ``MOST_EXACT`` in both dimensions the directions are found by random projections, always the same."""
    generator = torch.Generator().manual_seed(0)
    strong = (
        torch.randn(1100, 20, generator=generator)
        * torch.arange(20, 0, -1)
        @ torch.randn(20, 1100, generator=generator)
    )
    rows = (strong + 0.01 * torch.randn(1100, 1100, generator=generator)).double()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = principal_components(rows, COMPONENTS)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found, principal_components(rows, COMPONENTS))
    assert np.allclose(found, main_directions(rows), atol=1e-3 * float(found.abs().max()))


def by_hand(values):
    """``[MAP_FEATURES]`` of one map, a list of rows."""
    flat = [value for row in values for value in row]
    mean = sum(flat) / len(flat)
    spread = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat))
    cells = []
    height, width = len(values), len(values[0])
    for row in range(4):
        for column in range(4):
            inside = [
                values[y][x]
                for y in range(row * height // 4, -(-(row + 1) * height // 4))
                for x in range(column * width // 4, -(-(column + 1) * width // 4))
            ]
            cells.append(sum(inside) / len(inside))
    return [mean, spread, max(flat), sum(value > 0 for value in flat) / len(flat), *cells]


@pytest.mark.parametrize("size", [(8, 8), (6, 6), (7, 5), (3, 2), (1, 1)])
def test_a_map_is_told_by_its_spread_and_its_places(size):
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    found = map_features(maps, 1)
    assert found.shape == (2, 3, MAP_FEATURES)
    for image in range(2):
        for channel in range(3):
            assert found[image, channel].tolist() == pytest.approx(by_hand(maps[image, channel].tolist()), abs=1e-5)
    assert torch.equal(map_features(maps.movedim(1, -1), 3), found)


def test_vectors_and_tokens_have_features_too():
    vector = torch.tensor([[2.0, -3.0]])
    assert map_features(vector, 1)[0].tolist() == [[2, 0, 2, 1, *[2] * 16], [-3, 0, -3, 0, *[-3] * 16]]
    tokens = torch.arange(32.0).view(1, 16, 2)  # 16 places, channels last
    found = map_features(tokens, 2)
    assert found[0, 0, 4:].tolist() == [2.0 * place for place in range(16)]
    assert found[0, 1, 0] == sum(range(1, 33, 2)) / 16
