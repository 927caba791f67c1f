import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.network.training import History, Judged, TrainingSettings, augment, train


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_small_pictures_are_shifted_by_whole_pixels_within_the_bound():
    """One lit pixel in the middle: where it turns up is the shift."""
    pixels = torch.zeros(400, 1, 32, 16)
    pixels[:, 0, 16, 8] = 1
    varied = augment(pixels, False, generator())
    assert torch.allclose(varied.flatten(1).sum(1), torch.ones(400), atol=1e-3)
    places = varied.flatten(1).argmax(1)
    down, right = places // 16 - 16, places % 16 - 8
    assert set(down.tolist()) == set(range(-4, 5))
    assert set(right.tolist()) == set(range(-2, 3))


def test_what_moves_in_is_zero():
    varied = augment(torch.ones(200, 1, 8, 8), False, generator())
    lit = (varied > 0.5).flatten(1).sum(1)
    assert set(lit.tolist()) == {64, 56, 49}
    assert torch.allclose(varied.round(), varied, atol=1e-4)


def test_without_flip_a_left_lit_picture_stays_left_lit():
    pixels = torch.zeros(300, 1, 16, 16)
    pixels[..., :6] = 1
    varied = augment(pixels, False, generator())
    assert bool((varied[..., :4].sum((1, 2, 3)) > 0).all())
    assert float(varied[..., 8:].abs().max()) < 1e-4


def test_a_flip_mirrors_exactly():
    """Without a shift: a single row and column of 8 may still move by one, so undo each picture's shift first."""
    picture = torch.rand(1, 8, 8, generator=generator(3))
    varied = augment(picture.expand(500, 1, 8, 8).contiguous(), True, generator(1))
    plain = F.pad(picture, (1, 1, 1, 1))
    candidates = {}
    for mirrored, source in ((False, plain), (True, plain.flip(-1))):
        for down in range(3):
            for right in range(3):
                candidates[mirrored, down, right] = source[:, down : down + 8, right : right + 8]
    found = []
    for one in varied:
        matches = [key for key, wanted in candidates.items() if torch.allclose(one, wanted, atol=1e-4)]
        assert len(matches) == 1, "every picture is one shift of the picture or of its mirror image"
        found.append(matches[0])
    assert set(found) == set(candidates)
    share = np.mean([mirrored for mirrored, _, _ in found])
    assert 0.4 < share < 0.6


def test_large_pictures_are_cropped_within_the_bounds():
    """Two ramps: the slope of what comes out is the share of the side that was cropped."""
    down, right = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    pixels = torch.stack([down, right]).expand(300, 2, 128, 128).contiguous()
    varied = augment(pixels, True, generator())
    tall = (varied[:, 0, 100, 64] - varied[:, 0, 28, 64]) / 72
    wide = (varied[:, 1, 64, 100] - varied[:, 1, 64, 28]) / 72
    assert 0.4 < float((wide < 0).double().mean()) < 0.6
    area = tall * wide.abs()
    assert float(area.max()) <= 1.01
    assert float(area.min()) >= 0.3
    ratio = wide.abs() / tall
    assert float(ratio.min()) >= 3 / 4 - 0.02
    assert float(ratio.max()) <= 4 / 3 + 0.02
    inner = varied[:, :, 2:-2, 2:-2]
    assert float(inner.min()) >= 0
    assert float(inner[:, 0].amax((1, 2)).min()) > 30


def test_augmentation_follows_its_generator():
    pixels = torch.rand(8, 3, 16, 16, generator=generator(5))
    assert torch.equal(augment(pixels, True, generator(2)), augment(pixels, True, generator(2)))
    assert not torch.equal(augment(pixels, True, generator(2)), augment(pixels, True, generator(3)))


@pytest.fixture
def run(tiny, noise_images):
    """Train the chain on noise; validation follows a script of (loss, accuracy), and each epoch's weights are kept."""

    def go(script, seed=0, **options):
        module = tiny("chain")
        seen = []

        def validate(current):
            assert not current.training
            seen.append(copy.deepcopy(current.state_dict()))
            return script[len(seen) - 1]

        settings = TrainingSettings(
            **{"epochs": len(script) - 1, "batch_size": 16, "learning_rate": 0.05, "weight_decay": 1e-3, "flip": True}
            | options,
            seed=seed,
        )
        steps = []
        history = train(
            module,
            noise_images(40),
            lambda logits, _, labels: F.cross_entropy(logits, labels),
            validate,
            settings,
            lambda done, total: steps.append((done, total)),
        )
        return module, history, seen, steps

    return go


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([(1, 0.5), (1, 0.7), (1, 0.6)], 1),
        ([(1, 0.5), (1, 0.7), (1, 0.8)], 2),
        ([(1, 0.9), (1, 0.7), (1, 0.6)], 0),
        ([(1, 0.5), (0.9, 0.7), (0.8, 0.7), (0.85, 0.7)], 2),
        ([(1, 0.5), (1, 0.5), (1, 0.5)], 0),
    ],
)
def test_the_best_epoch_on_validation_is_kept(run, script, best):
    module, history, seen, _ = run(script)
    assert history.best == best
    assert [(row.validation_loss, row.validation_accuracy) for row in history.epochs] == script
    assert equal(module.state_dict(), seen[best])
    assert not equal(seen[0], seen[1])
    assert not module.training


def test_epoch_zero_is_the_state_before(run, tiny):
    _, history, seen, steps = run([(1, 0.1), (1, 0.2), (1, 0.3)])
    assert equal(seen[0], tiny("chain").state_dict())
    assert [row.epoch for row in history.epochs] == [0, 1, 2]
    assert history.epochs[0].train_loss is None
    assert all(math.isfinite(row.train_loss) for row in history.epochs[1:])
    assert steps == [(step, 4) for step in range(1, 5)]


def test_no_epochs_change_nothing(run, tiny):
    module, history, _, steps = run([(1, 0.1)])
    assert equal(module.state_dict(), tiny("chain").state_dict())
    assert (history.best, len(history.epochs), steps) == (0, 1, [])


def test_training_is_deterministic_by_seed(run):
    script = [(1, 0.1), (1, 0.2), (1, 0.3)]
    first, second, third = run(script, 1), run(script, 1), run(script, 2)
    assert equal(first[0].state_dict(), second[0].state_dict())
    assert first[1] == second[1]
    assert not equal(first[0].state_dict(), third[0].state_dict())


def test_training_lowers_the_loss(run):
    _, history, _, _ = run([(1, index / 100) for index in range(13)], flip=False)
    assert history.epochs[-1].train_loss < 0.6 * history.epochs[1].train_loss


def test_one_step_is_that_of_torchs_optimizer(noise_images):
    """One epoch of one batch without a chance to differ: a linear network on pictures that are one colour each."""
    images = noise_images(8, (3, 8, 8))
    torch.manual_seed(0)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    seen = []

    def loss(logits, batch, labels):
        value = F.cross_entropy(logits, labels)
        seen.append((batch.clone(), labels.clone()))
        return value

    twin = copy.deepcopy(module)
    settings = TrainingSettings(epochs=1, batch_size=8, learning_rate=0.1, weight_decay=0.01, flip=False, seed=0)
    train(module, images, loss, lambda current: (0.0, float(len(seen))), settings)
    batch, labels = seen[0]
    value = F.cross_entropy(twin(batch), labels)
    weight, bias = torch.autograd.grad(value, [twin[2].weight, twin[2].bias])
    assert float(torch.cat([weight.flatten(), bias]).norm()) < 5, "no clipping here"
    weight = weight + 0.01 * twin[2].weight
    assert torch.allclose(module[2].weight, twin[2].weight - 0.1 * 1.9 * weight, atol=1e-6)
    assert torch.allclose(module[2].bias, twin[2].bias - 0.1 * 1.9 * bias, atol=1e-6)


def test_a_training_runs_where_it_is_told_to_whatever_the_process_trained_on_before(noise_images, monkeypatch):
    """accelerate keeps the first device of a process in a state that all its accelerators share."""
    from accelerate.state import PartialState

    PartialState()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("meta"))
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    settings = TrainingSettings(epochs=1, batch_size=8, learning_rate=0.1, weight_decay=0, flip=False, seed=0)
    seen = []

    def loss(logits, batch, labels):
        seen.extend((logits.device.type, batch.device.type, labels.device.type))
        return F.cross_entropy(logits, labels)

    train(module, noise_images(8, (3, 8, 8)), loss, None, settings)
    assert set(seen) == {"cpu"}


class Halt(BaseException):
    """The user stops a training."""


def trained_with_dropout(noise_images, path=None, stop_after=None, epochs=4):
    """A network that draws at random itself; with ``stop_after``, stopped in the validation of that epoch."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    judged = []

    def validate(current):
        judged.append(None)
        if stop_after is not None and len(judged) > stop_after:
            raise Halt
        return 1.0, float(current[1].weight.detach().abs().mean())

    settings = TrainingSettings(epochs=epochs, batch_size=8, learning_rate=0.05, weight_decay=1e-3, flip=True, seed=3)
    torch.manual_seed(9)
    history = train(
        module, noise_images(40, (3, 8, 8)), lambda logits, _, labels: F.cross_entropy(logits, labels), validate, settings,
        checkpoint=path,
    )  # fmt: skip
    return module, history, len(judged)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(noise_images, tmp_path, stop_after):
    whole, history, _ = trained_with_dropout(noise_images)
    path = tmp_path / "training.pt"
    with pytest.raises(Halt):
        trained_with_dropout(noise_images, path, stop_after)
    resumed, again, judged = trained_with_dropout(noise_images, path)
    assert equal(whole.state_dict(), resumed.state_dict())
    assert again == history
    assert judged == (4 - stop_after + 1 if stop_after > 1 else 5)


def test_a_finished_training_is_not_done_again(noise_images, tmp_path):
    first, history, _ = trained_with_dropout(noise_images, tmp_path / "training.pt")
    again, same, judged = trained_with_dropout(noise_images, tmp_path / "training.pt")
    assert judged == 0
    assert same == history
    assert equal(first.state_dict(), again.state_dict())


def test_merit_chooses_before_accuracy(run):
    script = [(1, 0.9), Judged(1, 0.5, merit=0.95), Judged(0.1, 0.6, merit=0.7)]
    _, history, _, _ = run([(1, 0.9, 0.1), *script[1:]])
    assert history.best == 1
    assert History.from_json(history.to_json()) == history


def test_parameters_may_have_rates_of_their_own_and_then_do_not_decay(noise_images):
    images = noise_images(8, (3, 8, 8))
    torch.manual_seed(0)
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5), nn.Linear(5, 4))
    twin, seen = copy.deepcopy(module), []

    def loss(logits, batch, labels):
        seen.append((batch.clone(), labels.clone()))
        return F.cross_entropy(logits, labels)

    settings = TrainingSettings(
        epochs=1, batch_size=8, learning_rate=0.1, weight_decay=0.01, flip=False, seed=0, rates={"3.": 5.0}
    )
    train(module, images, loss, None, settings)
    value = F.cross_entropy(twin(seen[0][0]), seen[0][1])
    first, second = torch.autograd.grad(value, [twin[2].weight, twin[3].weight])
    assert torch.allclose(module[2].weight, twin[2].weight - 0.19 * (first + 0.01 * twin[2].weight), atol=1e-6)
    assert torch.allclose(module[3].weight, twin[3].weight - 5 * 0.19 * second, atol=1e-6)


def test_without_a_warm_up_the_rate_falls_along_a_cosine_to_its_end(noise_images):
    """Adam moves a parameter whose gradient is constant by the learning rate."""
    module = nn.Linear(1, 1)
    positions = []

    def loss(logits, batch, labels):
        positions.append(float(module.bias.detach()))
        return module.bias.sum() + 0 * logits.sum()

    settings = TrainingSettings(
        epochs=3, batch_size=8, learning_rate=0.1, weight_decay=0.0, flip=False, seed=0, optimizer="adam",
        warm_up=0.0, final_share=0.01,
    )  # fmt: skip
    train(
        module, noise_images(32, (3, 8, 8)), loss, None, settings,
        forward=lambda network, images, labels: network(images.mean((1, 2, 3)).unsqueeze(1)),
    )  # fmt: skip
    positions.append(float(module.bias.detach()))
    steps = [first - second for first, second in itertools.pairwise(positions)]
    expected = [0.1 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 12))) for step in range(12)]
    assert steps == pytest.approx(expected, rel=1e-3)
