import pytest
import torch

from secateur.common.errors import InputError
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import KernelScores, RankingTask
from secateur.explain.unit_scores import score_units
from secateur.network.channels.follow import find_groups


@pytest.fixture
def groups_and_scores(tiny):
    def build(name):
        module = tiny(name)
        groups = find_groups(module, torch.randn(2, 3, 12, 12))
        generator = torch.Generator().manual_seed(0)
        layers = {
            name: torch.rand(child.weight.shape[0], generator=generator)
            for name, child in module.named_modules()
            if hasattr(child, "weight") and child.weight.dim() > 1
        }
        return groups, layers

    return build


def test_a_stream_sums_its_layers_each_normalised_to_mean_one(groups_and_scores):
    groups, layers = groups_and_scores("padded")
    found = score_units(groups, KernelScores("mine", "", layers))
    stream = found["conv1"]
    assert set(stream.counted) == {"conv1", "layer1.0.conv2"}
    for unit in range(8):
        wanted = sum(float(layers[name][unit]) / (sum(layers[name].tolist()) / 8) for name in stream.counted)
        assert float(stream.values[unit]) == pytest.approx(wanted, rel=1e-6)
    assert "linear" not in found
    scaled = {name: values * 10**index for index, (name, values) in enumerate(layers.items())}
    again = score_units(groups, KernelScores("mine", "", scaled))
    assert all(torch.allclose(found[name].values, again[name].values) for name in found)


def test_tied_channels_are_summed(groups_and_scores):
    groups, layers = groups_and_scores("grouped")
    found = score_units(groups, KernelScores("mine", "", layers))
    group = next(g for g in groups if "grouped" in [m.layer for m in g.producers])
    for unit in range(group.units):
        wanted = 0.0
        for member in group.producers:
            values = layers[member.layer].tolist()
            wanted += sum(values[channel] for channel in member.channels[unit]) / (sum(values) / len(values))
        assert float(found[group.name].values[unit]) == pytest.approx(wanted, rel=1e-6)


def test_layers_without_a_score_and_of_zeros_are_left_out(groups_and_scores):
    groups, layers = groups_and_scores("padded")
    some = {name: values for name, values in layers.items() if name != "conv1"}
    some["layer3.0.conv1"] = torch.zeros(32)
    found = score_units(groups, KernelScores("mine", "", some))
    assert found["conv1"].counted == ("layer1.0.conv2",)
    assert found["layer3.0.conv1"].counted == ()
    assert not found["layer3.0.conv1"].values.any()


def test_a_group_that_nothing_scored_is_named(groups_and_scores):
    groups, layers = groups_and_scores("padded")
    del layers["layer3.0.conv1"]
    with pytest.raises(InputError, match=r"mine scored none of layer3\.0\.conv1"):
        score_units(groups, KernelScores("mine", "", layers))


def test_scores_of_another_network_are_named(groups_and_scores):
    groups, layers = groups_and_scores("padded")
    layers["layer2.0.conv1"] = torch.ones(15)
    with pytest.raises(InputError, match=r"15 kernels for layer2\.0\.conv1, the network 16"):
        score_units(groups, KernelScores("mine", "", layers))


@pytest.mark.parametrize("method", ["gap", "taylor", "magnitude", "fpgm", "lamp", "random", "bn-scale", "shapley"])
@pytest.mark.parametrize("name", ["padded", "inverted", "chain"])
def test_every_ranker_scores_every_open_group(tiny, network_of, noise_images, name, method):
    network = network_of(tiny(name))
    groups = find_groups(network.module, network.example())
    found = score_units(groups, rank_kernels(RankingTask(network, noise_images(8)), method))
    for group in groups:
        if not group.locked:
            assert found[group.name].values.shape == (group.units,)
            assert len(set(found[group.name].values.tolist())) > 1
            assert found[group.name].method == method


def test_gap_finds_the_kernels_that_do_nothing(tiny, network_of, noise_images):
    """Half of the kernels are cut off from the head: they score zero, so they go first."""
    network = network_of(tiny("chain"))
    dead = [1, 4, 5, 8, 10, 11, 13, 14]
    with torch.no_grad():
        network.module.head.weight[:, dead] = 0
    groups = find_groups(network.module, network.example())
    for method in ("gap", "taylor"):
        found = score_units(groups, rank_kernels(RankingTask(network, noise_images(16)), method))["conv2"].values
        assert found[dead].max() == 0
        alive = [unit for unit in range(16) if unit not in dead]
        assert found[alive].median() > 0
