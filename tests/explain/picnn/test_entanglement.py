from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.feature_selection import mutual_info_classif

from secateur.explain.picnn.entanglement import Entanglement, measure_entanglement, mutual_information, predict_pathways
from secateur.explain.picnn.membership import fit_membership
from secateur.explain.settings import PicnnSettings
from secateur.network.graph.two_parts import masked


@pytest.fixture(scope="module")
def measured(tiny, network_of, noise_images):
    network, images = network_of(tiny("Padded")), noise_images(120)
    pathway, _ = fit_membership(network, images, PicnnSettings(post_hoc_steps=60, batch_size=32))
    return pathway, images


def activations_of(images, count=200, noise=0.3, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    told = (labels == 1) + noise * generator.normal(size=count)
    return np.stack([told, generator.normal(size=count), np.zeros(count)], 1).astype(np.float32), labels


def test_mutual_information_is_scikit_learns(measured):
    activations, labels = activations_of(measured[1])
    found = mutual_information(activations, labels, seed=4)
    for label in range(3):
        direct = mutual_info_classif(activations[:, :2], labels == label, random_state=4)
        assert found[label, :2].tolist() == direct.tolist()
    assert found[:, 2].tolist() == [0, 0, 0], "a filter that never moves tells nothing"


def test_mutual_information_of_a_filter_that_tells_all_is_the_entropy():
    generator = np.random.default_rng(0)
    labels = np.arange(2000) % 10
    activations = (10.0 * (labels == 3) + 0.1 * generator.normal(size=2000)).astype(np.float32).reshape(-1, 1)
    entropy = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert mutual_information(activations, labels)[3, 0] == pytest.approx(entropy, abs=0.01)


def test_the_score_is_the_mean_over_filters_of_the_largest(measured):
    pathway, images = measured
    found = measure_entanglement(pathway, images, seed=2)
    with torch.no_grad():
        features, _ = pathway.parts.trunk(images.preprocessing.normalise(images.pixels()))
    pooled = features.mean((2, 3)).numpy()
    order = images.sample(len(images), 2)
    rows = [int(name) for name in order.names]
    by_class = np.stack(
        [mutual_info_classif(pooled[rows], images.labels[rows].numpy() == label, random_state=2) for label in range(4)]
    )
    assert found.mis == pytest.approx(float(by_class.max(0).mean()), rel=1e-6)
    assert found.mis_interval.low < found.mis < found.mis_interval.high
    assert found.mis_images == 120
    assert found.mis_filters == 32


def test_permuted_labels_are_the_floor_not_zero(measured):
    found = measure_entanglement(*measured)
    assert 0 < found.mis_floor < found.mis <= found.mis_ceiling + 0.05
    shares = torch.bincount(measured[1].labels, minlength=4).double() / 120
    largest = max(float(-(p * p.log() + (1 - p) * (1 - p).log())) for p in shares)
    assert found.mis_ceiling == pytest.approx(largest, rel=1e-9)


def test_a_class_with_one_image_tells_nothing():
    activations = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    assert mutual_information(activations, np.array([0, 0, 0, 0, 0, 1])).tolist() == [[0, 0], [0, 0]]


def test_many_filters_times_classes_are_sampled_and_said(measured, monkeypatch):
    monkeypatch.setattr("secateur.explain.picnn.entanglement.MOST_PAIRS", 80)
    assert measure_entanglement(*measured).mis_filters == 20


def test_certain_clusters_give_the_accuracies_of_fixed_masks(measured):
    """With memberships of 0 and 1 and certain predictions nothing is left to chance, and masks can be made by hand."""
    pathway, images = measured
    owner = torch.arange(32) % 4
    with torch.no_grad():
        kept = pathway.assignment.correspondence.clone()
        pathway.assignment.correspondence.copy_(200.0 * torch.nn.functional.one_hot(owner, 4).T)
        head = pathway.parts._head.linear
        weight, bias = head.weight.clone(), head.bias.clone()
        head.weight.mul_(1e4)
        head.bias.mul_(1e4)
        try:
            found = predict_pathways(pathway, images, draws=3)
            x = images.preprocessing.normalise(images.pixels())
            features, beside = pathway.parts.trunk(x)
            predicted = pathway.parts.head(features, beside).argmax(1)
            mask = (owner.unsqueeze(0) == predicted.unsqueeze(1)).float()
            own = pathway.parts.head(masked(features, mask)).argmax(1) == images.labels
            others = pathway.parts.head(masked(features, 1 - mask)).argmax(1) == images.labels
        finally:
            pathway.assignment.correspondence.copy_(kept)
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    assert torch.equal(found.right, predicted == images.labels)
    assert torch.equal(found.cluster_right, own.expand(3, -1))
    assert torch.equal(found.complement_right, others.expand(3, -1))
    assert found.cluster_share == pytest.approx(0.25)


@pytest.mark.parametrize("complement", ["opposite", "drawn"])
def test_complements_are_opposite_or_drawn_anew(measured, complement, monkeypatch):
    pathway, images = measured
    seen = []

    def head(features, beside=()):
        seen.append(features.detach().flatten(2).abs().sum(2) > 0)
        return torch.zeros(len(features), 4)

    monkeypatch.setattr(pathway.parts, "head", head)
    pathway.settings = replace(pathway.settings, complement=complement)
    try:
        predict_pathways(pathway, images, draws=1)
    finally:
        pathway.settings = replace(pathway.settings, complement="opposite")
    whole, own, others = seen
    opposite = bool((own ^ others == whole).all())
    assert opposite == (complement == "opposite")


def test_measures_come_back_from_json(measured):
    found = measure_entanglement(*measured)
    assert Entanglement.from_json(found.to_json()) == found


def test_intervals_hold_the_value_and_narrow_with_images(measured):
    pathway, images = measured
    whole = measure_entanglement(pathway, images)
    half = measure_entanglement(pathway, images.subset(torch.arange(30)))
    for name in ("acc1", "acc2", "acc3"):
        share = getattr(whole, name)
        assert share.low <= share.value <= share.high
        assert share.high - share.low < getattr(half, name).high - getattr(half, name).low + 1e-9
