import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.prune.repair.least_squares import Problem, ReconstructionSettings
from secateur.prune.repair.reconstruction import reconstruct
from secateur.prune.repair.repair import repair

ALL_PLACES = ReconstructionSettings(places=10**6)


@pytest.fixture
def cut_randomly(random_units):
    def build(network, seed=0, share=0.4):
        groups = find_groups(network.module, network.example())
        cut = cut_of(groups, random_units(groups, seed, share))
        return replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))

    return build


@pytest.mark.parametrize("name", ["padded", "inverted", "grouped", "dense", "gated", "chain"])
def test_no_layer_fits_worse_than_before_and_the_network_comes_nearer(
    name, tiny, network_of, noise_images, cut_randomly
):
    network = network_of(tiny(name))
    images = noise_images(96)
    small = cut_randomly(network)
    fixed, fits, used = reconstruct(network, small, images, ALL_PLACES)
    assert used == 96
    assert fits
    for fit in fits:
        assert fit.after <= fit.before + 1e-9, fit
    batch = torch.cat([batch for batch, _ in images.batches(96)])
    with torch.no_grad():
        wanted = network.logits(batch)
        before, after = ((net.logits(batch) - wanted).square().mean() for net in (small, fixed))
    assert after < before


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "vgg", "densenet121", "resnext", "mobilenet_v2"])
def test_torchvision_networks_are_fitted(name, large, network_of, noise_images, cut_randomly):
    network = network_of(large(name), (3, 32, 32), 5)
    images = noise_images(24, (3, 32, 32), 5)
    small = cut_randomly(network, share=0.3)
    fixed, fits, _ = reconstruct(network, small, images)
    assert all(fit.after <= fit.before + 1e-6 for fit in fits)
    with torch.no_grad():
        assert torch.isfinite(fixed.logits(fixed.example(4))).all()


def test_with_nothing_cut_nothing_changes(tiny, network_of, noise_images):
    network = replace(network_of(tiny("padded")), cuts=({},))
    fixed, fits, _ = reconstruct(network, network, noise_images(16))
    assert fits == ()
    example = network.example(4)
    with torch.no_grad():
        assert torch.equal(fixed.logits(example), network.logits(example))


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


def test_what_can_be_made_of_the_rest_comes_back_whole(network_of, noise_images):
    """Every removed kernel is a copy of one that stays, so the readers can make up for all of it."""
    torch.manual_seed(4)
    first, second = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 6, 3, padding=1, bias=False)
    with torch.no_grad():
        first.weight[4:] = first.weight[:4]
    module = nn.Sequential(
        first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    )  # fmt: skip
    network = network_of(module)
    groups = find_groups(network.module, network.example())
    cut = cut_of(groups, {"0": range(4, 8)})
    small = replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))
    fixed, _, _ = reconstruct(network, small, noise_images(64), ReconstructionSettings(ridge=1e-8, places=10**6))
    images = noise_images(16, seed=9).pixels()
    with torch.no_grad():
        wanted = network.logits(images)
        assert (small.logits(images) - wanted).abs().max() > 0.01
        assert (fixed.logits(images) - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_labels_are_not_read_and_the_given_networks_stay(tiny, network_of, noise_images, cut_randomly):
    network = network_of(tiny("padded"))
    small = cut_randomly(network)
    images = noise_images(48)
    held = copy.deepcopy(network.module.state_dict()), copy.deepcopy(small.module.state_dict())
    results = []
    for labels in (images.labels, torch.zeros_like(images.labels)):
        poisoned = replace(images, labels=labels)
        fixed, report = repair(network, small, poisoned, "distill", validation=poisoned)
        assert [step.name for step in report.steps] == ["mean", "reconstruct", "bn", "distill"]
        results.append(fixed.module.state_dict())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
    for state, module in zip(held, (network.module, small.module), strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_a_step_that_does_not_help_is_taken_back(tiny, network_of, noise_images, cut_randomly):
    """Divergences are measured again here; a kept step lowers them, and the result is the last kept one."""
    network = network_of(tiny("chain"))
    small = cut_randomly(network)
    images, validation = noise_images(64), noise_images(200, seed=7)
    fixed, report = repair(network, small, images, "reconstruct", validation=validation)

    def divergence(module):
        pixels = validation.pixels()
        with torch.no_grad():
            ours, theirs = (net(pixels).double().log_softmax(1) for net in (module, network.module))
        return float((theirs.exp() * (theirs - ours)).sum(1).mean())

    reached = divergence(small.module)
    for step in report.steps:
        assert step.divergence_before == pytest.approx(reached, rel=1e-3)
        assert step.kept == (step.divergence_after < step.divergence_before)
        if step.kept:
            reached = step.divergence_after
    assert divergence(fixed.module) == pytest.approx(reached, rel=1e-3)
