import numpy as np
import pytest
import torch
from torch import nn

from secateur.prune.repair.least_squares import Problem, ReconstructionSettings

ALL_PLACES = ReconstructionSettings(places=10**6)


def test_a_layer_fitted_to_its_own_output_keeps_its_weights():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3, padding=1)
    seen = torch.randn(20, 6, 8, 8)
    problem = Problem(layer, ALL_PLACES)
    problem.add(seen, layer(seen).detach(), 0)
    weight, constant, _ = problem.solve()
    assert torch.allclose(weight, layer.weight, atol=1e-5)
    assert torch.allclose(constant, layer.bias, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_without_ridge_it_is_least_squares(groups):
    """numpy's lstsq on patches gathered by loops, kernel group by kernel group."""
    torch.manual_seed(1)
    layer = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=groups)
    seen, target = torch.randn(12, 6, 7, 7), torch.randn(12, 6, 4, 4)
    problem = Problem(layer, ReconstructionSettings(ridge=1e-9, places=10**6))
    for index in range(3):
        problem.add(seen[4 * index : 4 * index + 4], target[4 * index : 4 * index + 4], index)
    weight, constant, _ = problem.solve()
    padded = torch.nn.functional.pad(seen, (1, 1, 1, 1)).double().numpy()
    per = 6 // groups
    for output in range(6):
        first = output // per * per
        rows, wanted = [], []
        for image in range(12):
            for y in range(4):
                for x in range(4):
                    patch = padded[image, first : first + per, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
                    rows.append([*patch.ravel(), 1.0])
                    wanted.append(float(target[image, output, y, x]))
        best = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
        assert np.allclose(weight[output].numpy().ravel(), best[:-1], atol=1e-4)
        assert np.isclose(float(constant[output]), best[-1], atol=1e-4)


def test_dual_and_primal_forms_agree():
    """The same rows, once all at once below the number of features (dual), once repeated tenfold (primal)."""
    torch.manual_seed(2)
    layer = nn.Linear(40, 3)
    seen, target = torch.randn(30, 40), torch.randn(30, 3)
    solved = []
    for repeats, form in ((1, "dual"), (10, "primal")):
        problem = Problem(layer, ReconstructionSettings(ridge=0.05))
        problem.add(seen.repeat(repeats, 1), target.repeat(repeats, 1), 0)
        weight, constant, fit = problem.solve()
        assert fit[3] == form
        solved.append((weight, constant, fit))
    for first, second in zip(solved[0][:2], solved[1][:2], strict=True):
        assert torch.allclose(first, second, atol=1e-4)
    assert solved[0][2][:2] == pytest.approx(solved[1][2][:2], abs=1e-5)


def test_statistics_stream_over_batches():
    torch.manual_seed(3)
    layer = nn.Conv2d(4, 5, 3)
    seen, target = torch.randn(24, 4, 6, 6) + 3, torch.randn(24, 5, 4, 4) - 2
    solved = []
    for size in (24, 5, 1):
        problem = Problem(layer, ALL_PLACES)
        for start in range(0, 24, size):
            problem.add(seen[start : start + size], target[start : start + size], start)
        solved.append(problem.solve()[0])
    assert torch.allclose(solved[0], solved[1], atol=1e-4)
    assert torch.allclose(solved[0], solved[2], atol=1e-4)
