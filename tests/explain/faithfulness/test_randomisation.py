import math

import pytest
import torch
from torch import nn

from secateur.explain.baselines import kernels
from secateur.explain.faithfulness.randomisation import cascading_randomisation, label_permutation, resemblance
from secateur.explain.gap.contributions import contributions
from secateur.network.training import TrainingSettings


@pytest.fixture
def case(tiny, network_of, noise_images):
    return lambda name, count=12: (network_of(tiny(name)), noise_images(count))


def weights(network):
    return {name: child.weight.clone() for name, child in network.module.named_modules() if hasattr(child, "weight")}


def magnitude(network):
    return {name: weight.abs().sum(1) for name, weight in kernels(network.module)}


def test_layers_are_drawn_anew_from_the_head_to_the_input(case):
    network, _ = case("chain")
    before = weights(network)
    state = {key: value.clone() for key, value in network.module.state_dict().items()}
    seen = []

    def rank(current):
        seen.append({name: not torch.equal(value, before[name]) for name, value in weights(current).items()})
        if seen[-1]["bn1"]:
            assert torch.equal(current.module.bn1.running_var, torch.ones(8))
        return magnitude(current)

    steps = cascading_randomisation(network, rank)
    assert [step.layer for step in steps] == ["head", "conv2", "conv1"]
    changed = [{name for name, other in row.items() if other} for row in seen]
    assert changed == [
        set(),
        {"head"},
        {"head", "conv2", "bn2"},
        {"head", "conv2", "bn2", "conv1", "bn1"},
    ]
    assert all(torch.equal(state[key], value) for key, value in network.module.state_dict().items())
    assert steps[0].resemblance.layers["conv1"] == steps[1].resemblance.layers["conv1"] == pytest.approx(1)
    assert abs(steps[2].resemblance.layers["conv1"]) < 0.999
    assert steps[0].resemblance.mean == pytest.approx(sum(steps[0].resemblance.layers.values()) / 3)


def test_randomisation_is_seeded_and_leaves_the_generator_alone(case):
    network, images = case("padded")

    def rank(current):
        torch.rand(3)
        return contributions(current, images).statistic("root_mean_square", "mean")

    torch.manual_seed(5)
    first = cascading_randomisation(network, rank, seed=1)
    left = torch.rand(2)
    torch.manual_seed(5)
    torch.rand(3)  # what ranking the original drew
    assert torch.equal(left, torch.rand(2))
    again, other = (cascading_randomisation(network, rank, seed=seed) for seed in (1, 2))
    assert [step.resemblance.layers for step in first] == [step.resemblance.layers for step in again]
    assert [step.resemblance.layers for step in first] != [step.resemblance.layers for step in other]
    assert (first[0].layer, first[-1].layer) == ("linear", "conv1")
    assert abs(first[-1].resemblance.mean) < 0.8


def test_scores_that_ignore_the_network_resemble_themselves(case):
    network, _ = case("grouped")
    fixed = {name: torch.arange(float(len(value))) for name, value in magnitude(network).items()}
    steps = cascading_randomisation(network, lambda _: fixed)
    assert all(step.resemblance.mean == pytest.approx(1) for step in steps)


def test_a_constant_layer_is_left_out_of_the_mean():
    found = resemblance({"a": torch.ones(4), "b": torch.arange(4.0)}, {"a": torch.rand(4), "b": -torch.arange(4.0)})
    assert math.isnan(found.layers["a"])
    assert found.mean == pytest.approx(-1)
    assert math.isnan(resemblance({"a": torch.ones(4)}, {"a": torch.rand(4)}).mean)


def test_permuted_labels_change_the_scores_more_than_another_order(case):
    network, images = case("chain", 64)
    state = {key: value.clone() for key, value in network.module.state_dict().items()}
    settings = TrainingSettings(epochs=12, batch_size=16, learning_rate=0.05, weight_decay=0.0, flip=False, seed=0)

    def rank(current):
        return contributions(current, images).statistic("root_mean_square", "mean")

    found = label_permutation(network, images, rank, settings)
    assert found.accuracy > 0.8
    assert found.accuracy > found.permuted_accuracy
    assert found.permuted.mean < found.control.mean
    assert all(torch.equal(state[key], value) for key, value in network.module.state_dict().items())
    assert all(isinstance(child, nn.Module) for child in network.module.modules())


def test_the_true_labels_again_give_the_same_scores(case):
    """Permuting labels that are all alike is no permutation: the twin is the same, and so are its scores."""
    from dataclasses import replace

    network, images = case("chain", 32)
    images = replace(images, labels=torch.zeros_like(images.labels))
    settings = TrainingSettings(epochs=1, batch_size=16, learning_rate=0.05, weight_decay=0.0, flip=False, seed=0)
    found = label_permutation(network, images, magnitude, settings)
    assert all(value == pytest.approx(1) for value in found.permuted.layers.values())
    assert found.accuracy == found.permuted_accuracy
