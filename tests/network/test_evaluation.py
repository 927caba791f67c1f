import math

import pytest
import torch

from secateur.network.evaluation import divergence, evaluate, predict


def test_accuracy_and_loss_by_hand(noise_images):
    images = noise_images(23)
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def logits_of(batch):
        return batch.mean((2, 3)) @ weight.T

    found = evaluate(logits_of, images, batch_size=5)
    right, loss = 0, 0.0
    for index in range(23):
        scores = [
            sum(float(w) * float(v) for w, v in zip(row, images.pixels()[index].mean((1, 2)), strict=True))
            for row in weight
        ]
        label = int(images.labels[index])
        right += scores.index(max(scores)) == label
        loss += math.log(sum(math.exp(score) for score in scores)) - scores[label]
    assert found.accuracy == right / 23
    assert found.loss == pytest.approx(loss / 23, rel=1e-5)
    assert found.images == 23


def test_predictions_come_in_order_whatever_the_batch(noise_images):
    images = noise_images(11)
    whole = predict(lambda batch: batch.mean((2, 3)), images, batch_size=100)
    parts = predict(lambda batch: batch.mean((2, 3)), images, batch_size=3)
    assert torch.allclose(whole, parts)
    assert torch.allclose(whole, images.pixels().mean((2, 3)))


def test_divergence_by_hand():
    got, reference = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.0, 3.0]]), torch.tensor([[0.0, 1.0, 1.0], [2.0, 0.0, 0.0]])
    total = 0.0
    for row, target in zip(got.tolist(), reference.tolist(), strict=True):
        q = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        p = [math.exp(v) / sum(map(math.exp, target)) for v in target]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence(got, reference) == pytest.approx(total / 2, rel=1e-5)
    assert divergence(got, got) == pytest.approx(0, abs=1e-7)
