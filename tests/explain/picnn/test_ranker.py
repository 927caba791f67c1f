import contextlib
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.explain.picnn.entanglement import measure_entanglement
from secateur.explain.picnn.membership import fit_membership
from secateur.explain.picnn.ranker import removal_losses, score_picnn
from secateur.explain.picnn.training import train_picnn
from secateur.explain.registry import get_ranker
from secateur.explain.scores import RankingTask
from secateur.explain.settings import PicnnSettings
from secateur.explain.unit_scores import score_units
from secateur.network.channels.follow import find_groups
from secateur.network.images.splits import Splits

BRIEF = PicnnSettings(post_hoc_steps=40, batch_size=32)


@contextlib.contextmanager
def silenced(module, name, filter_):
    """One filter of a block's output is zero, by a hook of its own."""

    def hook(_module, _inputs, output):
        output = output.clone()
        output[:, filter_] = 0
        return output

    handle = module.get_submodule(name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_removal_losses_are_those_of_running_the_network_without_each_filter(task):
    pathway, _ = fit_membership(task.network, task.images, BRIEF)
    losses, average, seen = removal_losses(pathway, task.images, 4, batch_size=50)
    x = task.images.preprocessing.normalise(task.images.pixels())
    labels = task.images.labels
    assert seen == 120
    with torch.no_grad():
        whole = F.cross_entropy(task.network.logits(x), labels, reduction="none")
        for filter_ in (0, 7, 31):
            with silenced(task.network.module, "layer3", filter_):
                rise = F.cross_entropy(task.network.logits(x), labels, reduction="none") - whole
            expected = [float(rise[labels == label].mean()) for label in range(4)]
            assert losses[:, filter_].tolist() == pytest.approx(expected, abs=1e-5)
        features, _ = pathway.parts.trunk(x)
    assert torch.allclose(average, features.mean((2, 3)).abs().mean(0), atol=1e-5)


def test_a_head_that_asks_for_the_number_of_images_is_asked_rightly(network_of, noise_images):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5 * 100, 4)

        def forward(self, x):
            return self.head(torch.relu(self.conv(x)).reshape(x.shape[0], -1))

    torch.manual_seed(0)
    network, images = network_of(Asks()), noise_images(30)
    pathway, _ = fit_membership(network, images, BRIEF)
    losses, _, _ = removal_losses(pathway, images, 4, batch_size=7)
    x = images.preprocessing.normalise(images.pixels())
    with torch.no_grad():
        whole = F.cross_entropy(network.logits(x), images.labels, reduction="none")
        features = torch.relu(network.module.conv(x))
        features[:, 2] = 0
        rise = F.cross_entropy(network.module.head(features.flatten(1)), images.labels, reduction="none") - whole
    expected = [float(rise[images.labels == label].mean()) for label in range(4)]
    assert losses[:, 2].tolist() == pytest.approx(expected, abs=1e-5)


def test_every_layer_of_a_residual_network_has_scores(task):
    found = get_ranker("picnn").score(task)
    layers = {name: child for name, child in task.network.module.named_modules() if isinstance(child, nn.Conv2d)}
    assert set(found.layers) == set(layers)
    for name, child in layers.items():
        assert len(found.layers[name]) == child.out_channels
        assert found.per_class[name].shape == (4, child.out_channels)
    assert found.details["target"] == "layer3"
    assert sorted(found.details["by the links"]) == sorted(layers)
    groups = find_groups(task.network.module, task.network.example(2))
    assert set(score_units(groups, found)) == {group.name for group in groups if not group.locked}


def test_filters_of_the_target_score_by_membership_times_loss(tiny, network_of, noise_images):
    """In a chain the last layer's own map is the target; hidden units behind it have scores of their own."""
    network, images = network_of(tiny("Dense")), noise_images(100)
    task = RankingTask(network, images, picnn=BRIEF)
    found = score_picnn(task)
    pathway, membership = fit_membership(network, images, BRIEF)
    losses, _, _ = removal_losses(pathway, images, 4)
    assert torch.allclose(found.layers["mix"], (membership.probabilities * losses).sum(0), atol=1e-6)
    assert torch.allclose(found.per_class["mix"], membership.probabilities * losses, atol=1e-6)
    assert found.details["behind the target, by gAP"] == ["hidden"]
    assert float(found.layers["hidden"].abs().sum()) > 0
    assert "head" not in found.layers


def test_links_are_first_order_effects_on_what_the_classes_filters_carry(tiny, network_of, noise_images):
    """Of a network that is linear in its kernels, the contribution is exact: what the sum over filters, weighted by membership
    and loss, loses when the kernel's map is its mean, for each image; the score is the root mean square."""
    network, images = network_of(tiny("Plain")), noise_images(80)
    found = score_picnn(RankingTask(network, images, picnn=BRIEF))
    pathway, membership = fit_membership(network, images, BRIEF)
    losses, average, _ = removal_losses(pathway, images, 4)
    weights = (membership.probabilities * losses).clamp(min=0) / average
    x = images.preprocessing.normalise(images.pixels())
    module = network.module
    with torch.no_grad():
        first = module.conv1(x)
        places = first.shape[2] * first.shape[3]
        whole = (module.conv2(first).mean((2, 3)) * weights[images.labels]).sum(1)
        for kernel in range(8):
            without = first.clone()
            without[:, kernel] = first[:, kernel].mean()
            lost = whole - (module.conv2(without).mean((2, 3)) * weights[images.labels]).sum(1)
            expected = float((lost / places).square().mean().sqrt())
            assert float(found.layers["conv1"][kernel]) == pytest.approx(expected, rel=1e-3)


def test_the_seed_decides_and_progress_is_told_to_the_end(task):
    told = []
    first = score_picnn(replace(task, progress=lambda done, total: told.append(done / total)))
    again, other = score_picnn(task), score_picnn(replace(task, seed=1))
    for name in first.layers:
        assert torch.equal(first.layers[name], again.layers[name])
    assert any(not torch.equal(first.layers[name], other.layers[name]) for name in first.layers)
    assert told == sorted(told)
    assert told[-1] >= 0.9


def test_a_membership_that_was_learned_before_a_stop_is_taken_up(task, tmp_path, monkeypatch):
    kept = replace(task, scratch=tmp_path)
    first = score_picnn(kept)
    monkeypatch.setattr("secateur.explain.picnn.ranker.fit_membership", None)
    again = score_picnn(kept)
    for name in first.layers:
        assert torch.allclose(first.layers[name], again.layers[name], atol=1e-6)


def test_images_without_labels_are_refused(task):
    with pytest.raises(InputError, match="images with labels"):
        score_picnn(replace(task, images=replace(task.images, labels=torch.full((120,), -1))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_scores_and_trains(task):
    first, second = score_picnn(task), score_picnn(replace(task, device="cuda"))
    for name in first.layers:  # masks are drawn by another generator there, so the memberships are alike, not equal
        assert first.layers[name].shape == second.layers[name].shape
        assert not second.layers[name].is_cuda
    splits = Splits(task.images, task.images.subset(torch.arange(40)), task.images, ("a", "b", "c", "d"), "")
    trained = train_picnn(task.network, splits, replace(BRIEF, epochs=2), device="cuda")
    on_gpu = measure_entanglement(trained.pathway.to("cuda"), task.images, device="cuda")
    on_cpu = measure_entanglement(trained.pathway.to("cpu"), task.images)
    assert on_gpu.acc1.value == pytest.approx(on_cpu.acc1.value, abs=0.02)
    assert on_gpu.mis == pytest.approx(on_cpu.mis, abs=1e-3)
