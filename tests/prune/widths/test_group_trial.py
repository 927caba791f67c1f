import pytest
import torch

from secateur.network.channels.follow import find_groups
from secateur.network.graph.trace import trace
from secateur.prune.repair.activations import Activations
from secateur.prune.repair.least_squares import ReconstructionSettings
from secateur.prune.widths.group_trial import GroupTrial


@pytest.fixture
def trials(tiny, network_of, noise_images):
    """The trials of a network's unlocked groups, a set of images to fit and judge on, and the class scores of the whole."""

    def build(name):
        network, images = network_of(tiny(name)), noise_images(24)
        view = trace(network.module, network.example())
        activations = Activations(view)
        activations.feed(images, 10)
        groups = [group for group in find_groups(network.module, network.example()) if not group.locked]
        with torch.no_grad():
            whole = network.logits(images.pixels())
        return [GroupTrial(view, group) for group in groups], activations, whole

    return build


@pytest.mark.parametrize("name", ["padded", "inverted", "grouped", "dense", "gated"])
def test_without_removed_units_the_class_scores_stay(trials, name):
    tried, activations, whole = trials(name)
    with torch.no_grad():
        for trial in tried:
            with trial.holding(activations):
                logits = trial.run(activations, activations, [], ReconstructionSettings())
            assert torch.allclose(logits, whole, atol=1e-3), trial.group.name


def test_a_unit_that_a_copy_can_replace_costs_nothing(tiny, network_of, noise_images):
    """conv2 reads kernels 0 and 1 of conv1, which are equal: its fit takes all from one of them."""
    module = tiny("chain")
    with torch.no_grad():
        module.conv1.weight[1], module.conv1.bias[1] = module.conv1.weight[0], module.conv1.bias[0]
        for values in (module.bn1.weight, module.bn1.bias, module.bn1.running_mean, module.bn1.running_var):
            values[1] = values[0]
    network, images = network_of(module), noise_images(48)
    group = next(g for g in find_groups(network.module, network.example()) if g.name == "conv1")
    view = trace(network.module, network.example())
    trial, activations = GroupTrial(view, group), Activations(view)
    activations.feed(images, 16)
    with torch.no_grad(), trial.holding(activations):
        whole = network.logits(images.pixels())
        settings = ReconstructionSettings(ridge=1e-9, places=10**6)
        copied, other = (trial.run(activations, activations, [unit], settings) for unit in (1, 2))
    assert (copied - whole).abs().max() < 1e-2 * (other - whole).abs().max()
