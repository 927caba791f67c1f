import statistics
from dataclasses import replace

import pytest
import torch

from secateur.common.errors import InputError
from secateur.explain.picnn.entanglement import measure_entanglement
from secateur.explain.picnn.membership import fit_membership
from secateur.explain.picnn.training import train_picnn, with_new_layer
from secateur.explain.settings import PicnnSettings
from secateur.network.digits import DigitsNetwork
from secateur.network.images.splits import Splits
from secateur.prune.surgery import cut

BRIEF = PicnnSettings(post_hoc_steps=40, batch_size=32)


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
    with pytest.raises(InputError, match="already has a new layer after layer3"):
        with_new_layer(wide, replace(BRIEF, filters=8))
    pruned = cut(task.network, plan_for(task.network, round_to=1))
    with pytest.raises(InputError, match="cannot be inserted into a pruned network"):
        with_new_layer(pruned, replace(BRIEF, filters=8))


def test_blocks_keep_their_names_in_networks_that_were_pruned(task, plan_for):
    """A network whose shortcuts are padded is a graph once it is pruned, which has no blocks of its own."""
    pruned = cut(task.network, plan_for(task.network, round_to=1))
    named = fit_membership(pruned, task.images, replace(BRIEF, target="layer3", post_hoc_steps=2))[1]
    found = fit_membership(pruned, task.images, replace(BRIEF, post_hoc_steps=2))[1]
    assert named.target == found.target == "layer3"
    assert torch.equal(named.probabilities, found.probabilities)


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
