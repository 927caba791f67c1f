import math
from dataclasses import replace

import pytest
import torch

from secateur.prune.repair.judging import judging


def test_the_divergence_is_kl_of_the_class_scores_without_labels(tiny, network_of, noise_images):
    network, other = (network_of(tiny("chain", seed)) for seed in (0, 1))
    images = noise_images(40)
    pixels = images.pixels()
    with torch.no_grad():
        wanted, got = (one.logits(pixels).double().log_softmax(1) for one in (network, other))
    by_hand = float((wanted.exp() * (wanted - got)).sum(1).mean())
    for labels in (images.labels, torch.full_like(images.labels, -(10**9))):
        judge = judging(network, replace(images, labels=labels), 0, "cpu")
        assert judge(other) == pytest.approx(by_hand, rel=1e-4)
        assert judge(network) == pytest.approx(0, abs=1e-6)


def test_scores_that_are_not_finite_are_infinitely_far(tiny, network_of, noise_images):
    network = network_of(tiny("chain"))
    broken = network.copy()
    with torch.no_grad():
        broken.module.head.bias[0] = math.nan
    assert judging(network, noise_images(20), 0, "cpu")(broken) == math.inf
