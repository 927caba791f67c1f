from dataclasses import replace

import pytest
import torch
from odd_networks import ChannelsLast, Dropping, GlobalContext, InPlace, Parallel

from secateur.common.errors import InputError
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.prune.repair.least_squares import ReconstructionSettings
from secateur.prune.repair.reconstruction import reconstruct
from secateur.prune.repair.repair import repair
from secateur.prune.widths.measure_sensitivity import measure_sensitivity


@pytest.mark.parametrize("name", ["padded", "inverted", "dense", "gated", "chain"])
def test_with_endless_ridge_it_is_the_loss_of_a_real_cut_with_mean_compensation(
    name, tiny, network_of, noise_images, scored
):
    """Endless ridge keeps the weights and fits the constant alone, which is what mean compensation does after a cut."""
    network = network_of(tiny(name))
    groups = find_groups(network.module, network.example())
    scores = scored(groups)
    images = noise_images(64)
    found = measure_sensitivity(network, groups, scores, images, ReconstructionSettings(ridge=1e12, places=10**6))
    assert (found.fitted_images, found.judged_images) == (32, 32)
    fitted, judged = images.subset(torch.arange(32)), images.subset(torch.arange(32, 64)).pixels()
    with torch.no_grad():
        wanted = network.logits(judged).double().log_softmax(1)
    for group in groups:
        if group.locked or len(group.consumers) != 1:
            continue
        order = scores[group.name].values.argsort().tolist()
        for kept, loss in (point for point in found.curves[group.name][:-1] if point[0]):
            cut = cut_of(groups, {group.name: order[: group.units - kept]})
            small = replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))
            fixed, _ = repair(network, small, fitted, "mean")
            with torch.no_grad():
                ours = fixed.logits(judged).double().log_softmax(1)
            expected = float((wanted.exp() * (wanted - ours)).sum(1).mean())
            assert loss == pytest.approx(expected, rel=2e-2, abs=1e-5), (group.name, kept)


@pytest.mark.parametrize("name", ["padded", "grouped", "dense"])
def test_reconstruction_lowers_the_losses_and_the_whole_loses_nothing(name, tiny, network_of, noise_images, scored):
    network = network_of(tiny(name))
    groups = find_groups(network.module, network.example())
    images = noise_images(300)
    bare = measure_sensitivity(network, groups, scored(groups), images, ReconstructionSettings(ridge=1e12))
    fitted = measure_sensitivity(network, groups, scored(groups), images)
    assert set(fitted.curves) == {group.name for group in groups if not group.locked}
    sums = []
    for found in (bare, fitted):
        assert all(curve[-1][1] == 0.0 for curve in found.curves.values())
        sums.append(sum(loss for curve in found.curves.values() for _, loss in curve))
    assert sums[1] < sums[0]


def test_too_few_images_are_refused(tiny, network_of, noise_images, scored):
    network = network_of(tiny("chain"))
    groups = find_groups(network.module, network.example())
    with pytest.raises(InputError, match="four"):
        measure_sensitivity(network, groups, scored(groups), noise_images(3))


@pytest.mark.parametrize("kind", [Parallel, ChannelsLast, GlobalContext, InPlace, Dropping])
def test_they_are_measured_and_fitted(kind, shake, network_of, noise_images, cut_by_half, scored):
    network, images = network_of(shake(kind())), noise_images(48)
    groups = find_groups(network.module, network.example())
    found = measure_sensitivity(network, groups, scored(groups), images)
    assert set(found.curves) == {group.name for group in groups if not group.locked}
    fixed, fits, _ = reconstruct(network, cut_by_half(network), images)
    assert all(fit.after <= fit.before + 1e-6 for fit in fits)
    with torch.no_grad():
        assert torch.isfinite(fixed.logits(fixed.example(4))).all()
