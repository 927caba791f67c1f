import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from secateur.explain.settings import PicnnSettings
from secateur.network.images.splits import make_splits
from secateur.network.training import train
from secateur.prune.repair import fine_tune as recover_module
from secateur.prune.repair.fine_tune import recover, recover_with_pathway
from secateur.prune.settings import RecoverySettings
from secateur.prune.surgery import cut


@pytest.fixture
def case(tiny, network_of, noise_images, plan_for):
    def build(name="padded"):
        network = network_of(tiny(name))
        pruned = cut(network, plan_for(network, round_to=1))
        parts = {
            part: noise_images(count, seed=seed)
            for seed, (part, count) in enumerate({"train": 48, "val": 24, "test": 8}.items())
        }
        return network, pruned, make_splits(parts, network.class_names, ())

    return build


def equal(first, second):
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


SHORT = RecoverySettings(epochs=2, batch_size=16, learning_rate=0.02)


@pytest.mark.parametrize("name", ["padded", "inverted"])
def test_both_networks_stay_as_they_are(case, name):
    original, pruned, splits = case(name)
    copies = [copy.deepcopy(n.module) for n in (original, pruned)]
    modes = [p.requires_grad for p in original.module.parameters()]
    recovered, _ = recover(original, pruned, splits, SHORT)
    assert equal(original.module, copies[0])
    assert equal(pruned.module, copies[1])
    assert modes == [p.requires_grad for p in original.module.parameters()]
    assert recovered.cuts == pruned.cuts
    assert not recovered.module.training


def test_without_epochs_the_weights_are_equal(case):
    original, pruned, splits = case()
    recovered, history = recover(original, pruned, splits, RecoverySettings(epochs=0))
    assert equal(recovered.module, pruned.module)
    assert len(history.epochs) == 1


def accuracy(network, images):
    with torch.no_grad():
        return float((network.logits(images.pixels()).argmax(1) == images.labels).double().mean())


def test_history_starts_with_the_pruned_network_and_the_best_is_kept(case):
    original, pruned, splits = case()
    recovered, history = recover(
        original, pruned, splits, RecoverySettings(epochs=4, batch_size=16, learning_rate=0.05)
    )
    rows = history.epochs
    assert [row.epoch for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0].train_loss is None
    assert rows[0].validation_accuracy == pytest.approx(accuracy(pruned, splits.validation))
    best = max(row.validation_accuracy for row in rows)
    assert rows[history.best].validation_accuracy == best
    assert accuracy(recovered, splits.validation) == pytest.approx(best)


def test_the_seed_decides(case):
    original, pruned, splits = case()
    settings = RecoverySettings(epochs=1, batch_size=16, learning_rate=0.05, distillation=1.0)
    first, second, third = (recover(original, pruned, splits, settings, seed=seed) for seed in (1, 1, 2))
    assert first[1] == second[1]
    assert equal(first[0].module, second[0].module)
    assert first[1].epochs[1] != third[1].epochs[1]


@pytest.fixture
def given_to_training(case, monkeypatch):
    """The loss and the settings that recovery hands to the training loop."""

    def catch(settings, name="padded"):
        caught = {}

        def fake(module, images, loss, validate, training, progress, **_):
            x, labels = images.pixels()[:6], images.labels[:6]
            with torch.no_grad():
                scores = module(x)
            caught.update(loss=float(loss(scores, x, labels)), scores=scores.double(), labels=labels, training=training)
            caught["teacher"] = case(name)[0].logits(x).detach().double()
            return "history"

        monkeypatch.setattr(recover_module, "train", fake)
        recover(*case(name), settings, seed=7)
        return caught

    return catch


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 2.0), (1.0, 1.0), (0.7, 3.0)])
def test_the_loss_is_hintons(given_to_training, share, temperature):
    caught = given_to_training(RecoverySettings(distillation=share, temperature=temperature))

    def softmax(row, t):
        exponentials = [math.exp(value / t) for value in row]
        return [value / sum(exponentials) for value in exponentials]

    total = 0.0
    for scores, teacher, label in zip(
        caught["scores"].tolist(), caught["teacher"].tolist(), caught["labels"], strict=True
    ):
        hard = -math.log(softmax(scores, 1)[label])
        p, q = softmax(teacher, temperature), softmax(scores, temperature)
        soft = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += (1 - share) * hard + share * temperature**2 * soft
    assert caught["loss"] == pytest.approx(total / 6, rel=1e-4)


def test_colour_is_mirrored_unless_said_otherwise(given_to_training):
    assert given_to_training(RecoverySettings())["training"].flip is True
    assert given_to_training(RecoverySettings(flip=False))["training"].flip is False
    training = given_to_training(RecoverySettings(epochs=5, batch_size=9, learning_rate=0.3, weight_decay=0.1))[
        "training"
    ]
    assert (training.epochs, training.batch_size, training.learning_rate, training.weight_decay) == (5, 9, 0.3, 0.1)
    assert training.seed == 7


def test_grey_pictures_are_not_mirrored(plan_for, monkeypatch):
    from secateur.network.images.load import load_images
    from secateur.network.load import load_model

    network = load_model("digits")
    pruned = cut(network, plan_for(network))
    seen = []
    monkeypatch.setattr(
        recover_module,
        "train",
        lambda module, images, loss, validate, training, progress, **_: seen.append(training.flip),
    )
    recover(network, pruned, load_images("digits", network.preprocessing), RecoverySettings())
    recover(network, pruned, load_images("digits", network.preprocessing), RecoverySettings(flip=True))
    assert seen == [False, True]


def test_recovery_on_the_digits_helps(plan_for):
    from secateur.network.images.load import load_images
    from secateur.network.load import load_model

    network = load_model("digits")
    splits = load_images("digits", network.preprocessing)
    pruned = cut(network, plan_for(network, 0.25))
    batch = network.preprocessing.normalise(splits.test.pixels())

    def right(one):
        with torch.no_grad():
            return float((one.logits(batch).argmax(1) == splits.test.labels).double().mean())

    recovered, _ = recover(network, pruned, splits, RecoverySettings(epochs=2, learning_rate=0.05))
    assert right(pruned) < 0.8
    assert right(recovered) > 0.9


BRIEF = PicnnSettings(post_hoc_steps=40, batch_size=16)


@pytest.mark.parametrize("name", ["padded", "dense"])
def test_with_the_pathway_both_networks_stay_and_the_matrix_is_of_the_pruned_one(case, name):
    original, pruned, splits = case(name)
    copies = [copy.deepcopy(n.module) for n in (original, pruned)]
    recovered, history, membership = recover_with_pathway(original, pruned, splits, SHORT, BRIEF)
    assert equal(original.module, copies[0])
    assert equal(pruned.module, copies[1])
    assert not equal(recovered.module, pruned.module) or history.best == 0
    assert recovered.cuts == pruned.cuts
    widths = {"padded": "layer3.0.conv2", "dense": "mix"}
    assert membership.probabilities.shape == (4, pruned.module.get_submodule(widths[name]).out_channels)
    assert all("acc2" in row.measures for row in history.epochs)


def test_the_pathways_loss_is_added_to_the_same_distillation(case, monkeypatch):
    """What training minimises, recomputed by hand from the scores it was given."""
    original, pruned, splits = case()
    seen = []

    def watched(pathway, images, loss, *arguments, **options):
        def recording(output, batch, labels):
            value = loss(output, batch, labels)
            seen.append((output, batch, labels, float(value.detach())))
            return value

        return train(pathway, images, recording, *arguments, **options)

    monkeypatch.setattr("secateur.explain.picnn.training.train", watched)
    settings = RecoverySettings(epochs=1, batch_size=16, temperature=3.0, distillation=0.4)
    recover_with_pathway(original, pruned, splits, settings, replace(BRIEF, weight=1.5))
    for output, batch, labels, value in seen:
        with torch.no_grad():
            teacher = original.logits(batch)
            plain = F.cross_entropy(output.scores, labels)
            softened = [(scores / 3.0).softmax(1) for scores in (teacher, output.scores)]
            divergence = (softened[0] * (softened[0].log() - softened[1].log())).sum(1).mean()
            expected = 0.6 * plain + 0.4 * 9 * divergence + 1.5 * F.cross_entropy(output.cluster_scores, labels)
        assert value == pytest.approx(float(expected), rel=1e-4)
    assert len(seen) == 3


def test_a_recovery_that_was_stopped_goes_on(case, tmp_path):
    original, pruned, splits = case()

    class StoppedError(Exception):
        pass

    def stop(done, total):
        if done > 0.7 * total:
            raise StoppedError

    whole, history = recover(original, pruned, splits, SHORT)
    with pytest.raises(StoppedError):
        recover(original, pruned, splits, SHORT, progress=stop, checkpoint=tmp_path / "training.pt")
    assert (tmp_path / "training.pt").is_file()
    again, same = recover(original, pruned, splits, SHORT, checkpoint=tmp_path / "training.pt")
    assert equal(whole.module, again.module)
    assert same == history
