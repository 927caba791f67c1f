import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.explain.faithfulness.ablation import ablation_truth
from secateur.explain.faithfulness.curves import (
    SHARES,
    Curve,
    correlate,
    correlation,
    discriminative_degree,
    faithfulness_curves,
    surrogate_agreement,
)
from secateur.explain.gap.contributions import contributions
from secateur.explain.scores import KernelScores
from secateur.network.graph.execution import output_node
from secateur.network.graph.feature_points import find_stages, named_points
from secateur.network.graph.trace import reading_points, trace


@pytest.fixture
def case(tiny, network_of, noise_images, spread):
    def build(name, count=9, seed=0):
        return spread(network_of(tiny(name, seed)), noise_images(count, seed=seed))

    return build


def random_scores(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: torch.randn(len(child.weight), generator=generator)
        for name, child in network.module.named_modules()
        if isinstance(child, nn.Conv2d | nn.Linear)
    }
    return KernelScores("mine", "none", layers)


def test_correlation_is_torchs_and_that_of_ranks():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 30, generator=generator)
    second = second + first
    found = correlate(first, second)
    assert found.pearson == pytest.approx(float(torch.corrcoef(torch.stack([first, second]))[0, 1]), abs=1e-5)
    ranks = torch.stack([values.argsort().argsort().float() for values in (first, second)])
    assert found.spearman == pytest.approx(float(torch.corrcoef(ranks)[0, 1]), abs=1e-5)
    assert found.kernels == 30


def test_ties_share_their_mean_rank():
    found = correlate(torch.tensor([1.0, 1.0, 2.0, 5.0]), torch.tensor([0.0, 3.0, 4.0, 9.0]))
    ranks = torch.tensor([[1.5, 1.5, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    assert found.spearman == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))


@pytest.mark.parametrize("constant", [torch.full((5,), 2.5), torch.zeros(5)])
def test_a_constant_side_has_no_correlation_and_no_warning(constant, recwarn):
    for pair in ((constant, torch.arange(5.0)), (torch.arange(5.0), constant)):
        found = correlate(*pair)
        assert math.isnan(found.pearson)
        assert math.isnan(found.spearman)
    assert math.isnan(correlate(torch.ones(1), torch.ones(1)).pearson)
    assert not recwarn.list


def test_scores_of_another_network_are_refused():
    with pytest.raises(InputError, match="4 scores cannot be compared with 5"):
        correlate(torch.rand(4), torch.rand(5))
    with pytest.raises(InputError, match="no layer in common"):
        correlation({"a": torch.rand(4)}, {"b": torch.rand(4)})


def test_a_ranking_equal_to_the_truth_correlates_fully(networks, shake, network_of, noise_images):
    """In a linear network the contributions, summed over places, are the truth; in any other they are not."""
    images = noise_images(12)
    for module, exact in ((networks.Plain(), True), (networks.Padded(), False)):
        network = network_of(shake(module))
        truth = ablation_truth(network, images).statistic("root_mean_square")
        scores = contributions(network, images).statistic("root_mean_square", "mean", summed=True)
        found = correlation(scores, truth)
        assert list(found) == list(truth)
        inner = [part for layer, part in found.items() if not layer.endswith(("head", "linear"))]
        assert all((part.pearson > 1 - 1e-5) == exact for part in inner)
        assert all(part.pearson > 0.3 for part in inner)


def by_hand(network, images, removed, averages):
    """Accuracy and mean probability with hooks that overwrite channels; ``removed``: layer to a set of kernels."""
    view = trace(network.module, network.example())
    handles = []
    for layer, points in reading_points(view).items():
        for channel in removed.get(layer, ()):

            def hook(_module, _inputs, output, channel=channel, value=float(averages[layer][channel])):
                output = output.clone()
                output[:, channel] = value
                return output

            handles.append(view.get_submodule(points[0]).register_forward_hook(hook))
    with torch.no_grad():
        logits = view(images.pixels())
    for handle in handles:
        handle.remove()
    right = (logits.argmax(1) == images.labels).double().mean()
    return float(right), float(logits.softmax(1)[torch.arange(len(images)), images.labels].double().mean())


@pytest.mark.parametrize(("name", "fill", "head"), [("padded", "mean", "linear"), ("dense", "zero", "head")])
def test_curves_by_hand(case, name, fill, head):
    network, images = case(name, 20)
    scores = random_scores(network)
    found = faithfulness_curves(network, images, scores, fill=fill, batch_size=7)
    averages = {layer: part.fill for layer, part in ablation_truth(network, images, fill=fill).layers.items()}
    layers = [layer for layer in scores.layers if layer != head]
    assert set(found.layers) == set(layers)
    for curve, sign in ((found.deletion, -1), (found.pruning, 1)):
        for index, share in enumerate(SHARES):
            removed = {}
            for layer in layers:
                order = sorted(range(len(scores.layers[layer])), key=lambda k: sign * scores.layers[layer][k])
                removed[layer] = order[: len(order) * index // 8]
            accuracy, probability = by_hand(network, images, removed, averages)
            assert curve.shares[index] == share
            assert curve.accuracy[index] == pytest.approx(accuracy)
            assert curve.probability[index] == pytest.approx(probability, rel=1e-4)
    assert found.images == 20
    assert len(set(found.deletion.accuracy)) > 1


def test_insertion_is_pruning_from_its_end(case):
    network, images = case("chain", 20)
    scores = random_scores(network)
    found = faithfulness_curves(network, images, scores)
    averages = {layer: part.fill for layer, part in ablation_truth(network, images).layers.items()}
    assert found.insertion.shares == SHARES
    for index in range(9):
        absent = {
            layer: scores.layers[layer].argsort(descending=True)[width * index // 8 :].tolist()
            for layer, width in (("conv1", 8), ("conv2", 16))
        }
        assert found.insertion.accuracy[index] == pytest.approx(by_hand(network, images, absent, averages)[0])


def test_areas_are_trapezoids():
    curve = Curve((0.0, 0.25, 1.0), (1.0, 0.5, 0.1), (0.8, 0.4, 0.4))
    assert curve.area == pytest.approx(0.25 * 0.75 + 0.75 * 0.3)
    assert curve.probability_area == pytest.approx(0.25 * 0.6 + 0.75 * 0.4)


def test_the_truth_deletes_faster_than_its_opposite():
    from secateur.network.images.load import load_images
    from secateur.network.load import load_model

    network = load_model("digits")
    images = load_images("digits", network.preprocessing).train.sample(60, 0)
    truth = ablation_truth(network, images.subset(torch.arange(12))).statistic("root_mean_square")
    good = faithfulness_curves(network, images, KernelScores("truth", "logits", truth))
    bad = faithfulness_curves(network, images, KernelScores("opposite", "", {k: -v for k, v in truth.items()}))
    assert good.deletion.accuracy == bad.pruning.accuracy
    assert good.deletion.area + 0.1 < good.pruning.area
    assert good.deletion.accuracy[0] > 0.95
    assert good.deletion.accuracy[-1] < 0.3  # the head alone, of averages


def test_layers_without_scores_stay_whole(case):
    network, images = case("padded", 12)
    every = random_scores(network)
    scores = replace(every, layers={"layer1.0.conv1": every.layers["layer1.0.conv1"]})
    found = faithfulness_curves(network, images, scores)
    averages = ablation_truth(network, images, layers=["layer1.0.conv1"]).layers["layer1.0.conv1"].fill
    wanted = by_hand(network, images, {"layer1.0.conv1": range(8)}, {"layer1.0.conv1": averages})
    assert found.layers == ("layer1.0.conv1",)
    assert found.deletion.probability[-1] == pytest.approx(wanted[1], rel=1e-4)


def test_scores_that_say_nothing_about_the_network_are_refused(case):
    network, images = case("chain")
    with pytest.raises(InputError, match="mine scored no layer"):
        faithfulness_curves(network, images, KernelScores("mine", "", {"head": torch.rand(4)}))
    with pytest.raises(InputError, match="7 kernels for conv1, the network 8"):
        faithfulness_curves(network, images, KernelScores("mine", "", {"conv1": torch.rand(7)}))


def test_a_network_is_its_own_surrogate_and_each_image_keeps_its_own(case):
    """The forward written out, image by image; and nothing removed is the whole network."""
    network, images = case("chain", 20)
    module, x = network.module, images.pixels()
    view = trace(module, network.example())
    points = named_points(view, network.example(), ["conv1", "conv2"])
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(20, point.channels, generator=generator) < 0.5 for point in points]
    with torch.no_grad():
        first = module.conv1(x)
        second = module.conv2(F.relu(module.bn1(first)))
        whole = module(x).argmax(1)
        for fill, averages in (
            ("mean", [m.mean((0, 2, 3)) for m in (first, second)]),
            ("zero", [0 * first[0, 0, 0, 0]] * 2),
        ):
            predictions = []
            for image in range(20):
                kept = [mask[image].view(-1, 1, 1) for mask in masks]
                others = [average.view(-1, 1, 1) for average in averages]
                a = torch.where(kept[0], module.conv1(x[image : image + 1]), others[0])
                b = torch.where(kept[1], module.conv2(F.relu(module.bn1(a))), others[1])
                predictions.append(int(module.head(F.relu(module.bn2(b)).mean((2, 3))).argmax()))
            found = surrogate_agreement(view, points, masks, images, fill=fill, batch_size=7)
            same = [own == other for own, other in zip(predictions, whole.tolist(), strict=True)]
            right = [own == label for own, label in zip(predictions, images.labels.tolist(), strict=True)]
            assert found.agreement == pytest.approx(sum(same) / 20)
            assert found.surrogate_accuracy == pytest.approx(sum(right) / 20)
            assert found.accuracy == pytest.approx(float((whole == images.labels).double().mean()))
            assert found.agreement < 1
            assert found.kept == pytest.approx(float(torch.cat(masks, 1).double().mean()))
    everything = [torch.ones_like(mask) for mask in masks]
    assert surrogate_agreement(view, points, everything, images).agreement == 1


def test_stages_can_be_reduced_and_masks_must_fit(case):
    network, images = case("padded", 6)
    view = trace(network.module, network.example())
    points = find_stages(view, network.example())
    masks = [torch.ones(6, point.channels, dtype=torch.bool) for point in points]
    assert surrogate_agreement(view, points, masks, images).agreement == 1
    masks[-1] = masks[-1][:5]
    with pytest.raises(InputError, match=r"\(5, 32\); expected 6 images x 32 kernels"):
        surrogate_agreement(view, points, masks, images)
    assert not any(child._forward_hooks for child in view.modules())
    assert output_node(view).op == "output"


def test_the_discriminative_degree():
    counts = torch.tensor([[3, 0, 1, 0], [1, 5, 1, 0], [0, 0, 1, 0]])
    found = discriminative_degree(counts)
    assert found[:3].tolist() == pytest.approx([3 / 4, 1.0, 1 / 3])
    assert math.isnan(found[3])
