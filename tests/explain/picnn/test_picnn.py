import contextlib
import statistics
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.explain.picnn.entanglement import measure_entanglement
from secateur.explain.picnn.membership import fit_membership
from secateur.explain.picnn.ranker import removal_losses, score_picnn
from secateur.explain.picnn.training import train_picnn, with_new_layer
from secateur.explain.registry import get_ranker
from secateur.explain.scores import RankingTask
from secateur.explain.settings import PicnnSettings
from secateur.explain.unit_scores import score_units
from secateur.network.channels.follow import find_groups
from secateur.network.digits import DigitsNetwork
from secateur.network.images.digits_images import load_digits_splits
from secateur.network.images.splits import Splits
from secateur.network.load import load_model
from secateur.prune.surgery import cut

BRIEF = PicnnSettings(post_hoc_steps=40, batch_size=32)


@pytest.fixture(scope="module")
def task(tiny, network_of, noise_images, spread):
    network, images = spread(network_of(tiny("Padded")), noise_images(120))
    return RankingTask(network, images, picnn=BRIEF)


@pytest.fixture(scope="module")
def digits():
    network = load_model("digits")
    return network, load_digits_splits(network.preprocessing)


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


def test_training_leaves_the_network_given_and_returns_another(task):
    splits = Splits(task.images, task.images.subset(torch.arange(40)), task.images, ("a", "b", "c", "d"), "")
    before = {name: value.clone() for name, value in task.network.module.state_dict().items()}
    trained = train_picnn(task.network, splits, replace(BRIEF, epochs=3, learning_rate=3e-3))
    assert all(torch.equal(before[name], value) for name, value in task.network.module.state_dict().items())
    assert type(trained.network.module) is type(task.network.module)
    x = task.network.example(3)
    with torch.no_grad():
        assert torch.allclose(trained.network.logits(x), trained.pathway.parts(x), atol=1e-5)
    assert [row.epoch for row in trained.history.epochs] == [0, 1, 2, 3]
    chosen = trained.history.epochs[trained.history.best]
    assert chosen.merit == max(row.merit for row in trained.history.epochs)
    for row in trained.history.epochs:
        assert row.merit == pytest.approx((row.validation_accuracy + 2 * row.measures["acc2"]) / 3)


def test_an_untrained_matrix_stays_and_accuracy_chooses(task):
    splits = Splits(task.images, task.images.subset(torch.arange(40)), task.images, ("a", "b", "c", "d"), "")
    settings = replace(BRIEF, epochs=1, masks="std")
    trained = train_picnn(task.network, splits, settings)
    start = fit_membership(task.network, task.images, settings)[1]
    assert torch.allclose(trained.membership.probabilities, start.probabilities)
    assert all(row.merit is None for row in trained.history.epochs)


def test_a_new_layer_has_the_papers_width(task):
    assert with_new_layer(task.network, BRIEF) == (task.network, BRIEF)
    nameless = replace(task.network, class_names=())
    wide, _ = with_new_layer(nameless, PicnnSettings(filters_per_class=12.8))
    assert wide.new_layer.filters == 51
    narrow, settings = with_new_layer(task.network, replace(BRIEF, filters=6, epochs=1))
    splits = Splits(task.images, task.images.subset(torch.arange(40)), task.images, ("a", "b", "c", "d"), "")
    trained = train_picnn(narrow, splits, settings)
    assert trained.membership.probabilities.shape == (4, 6)
    assert trained.network.new_layer == narrow.new_layer


def test_a_new_layer_behind_a_block_in_the_middle_is_the_one_that_is_trained(digits):
    network, splits = digits
    wide, settings = with_new_layer(network, replace(BRIEF, filters=12, target="block1"))
    found = fit_membership(wide, splits.train, settings)[1]
    assert found.probabilities.shape == (10, 12)


def test_a_second_new_layer_and_one_in_a_pruned_network_are_refused(task, plan_for):
    wide, _ = with_new_layer(task.network, replace(BRIEF, filters=6))
    with pytest.raises(InputError, match="has a new layer already, behind layer3"):
        with_new_layer(wide, replace(BRIEF, filters=8))
    pruned = cut(task.network, plan_for(task.network, round_to=1))
    with pytest.raises(InputError, match="cannot be put into a network that was pruned"):
        with_new_layer(pruned, replace(BRIEF, filters=8))


def test_blocks_keep_their_names_in_networks_that_were_pruned(task, plan_for):
    """A network whose shortcuts are padded is a graph once it is pruned, which has no blocks of its own."""
    pruned = cut(task.network, plan_for(task.network, round_to=1))
    named = fit_membership(pruned, task.images, replace(BRIEF, target="layer3", post_hoc_steps=2))[1]
    found = fit_membership(pruned, task.images, replace(BRIEF, post_hoc_steps=2))[1]
    assert named.target == found.target == "layer3"
    assert torch.equal(named.probabilities, found.probabilities)


def test_images_without_labels_are_refused(task):
    with pytest.raises(InputError, match="images with labels"):
        score_picnn(replace(task, images=replace(task.images, labels=torch.full((120,), -1))))


@pytest.mark.long
def test_digits_trained_with_picnn_keep_their_accuracy_and_tell_filters_apart(digits):
    """Five seeds from scratch: ACC1 within a point of plain training, ACC2 at least 0.9 and ACC3 at
    most half of ACC1, MIS above that of plain training, whose P is random (STD)."""
    network, splits = digits
    settings = PicnnSettings(epochs=30, batch_size=64, weight_decay=0.3)
    found = {"bernoulli": [], "std": []}
    for seed in range(5):
        torch.manual_seed(seed)
        fresh = replace(network, module=DigitsNetwork().eval())
        for masks, rows in found.items():
            trained = train_picnn(fresh, splits, replace(settings, masks=masks), seed=seed)
            rows.append(measure_entanglement(trained.pathway, splits.test, seed=seed))

    def mean(masks, name):
        return statistics.fmean(
            getattr(row, name).value if name.startswith("acc") else getattr(row, name) for row in found[masks]
        )

    assert mean("bernoulli", "acc1") > mean("std", "acc1") - 0.01
    assert mean("bernoulli", "acc2") >= 0.9 * mean("bernoulli", "acc1")
    assert mean("bernoulli", "acc3") <= 0.5 * mean("bernoulli", "acc1")
    assert mean("bernoulli", "mis") > mean("std", "mis")


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
