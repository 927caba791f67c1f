from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import prune_and_export
from secateur.common.errors import InputError
from secateur.explain.registry import get_ranker
from secateur.explain.scores import KernelScores, RankingTask
from secateur.explain.shapley import ranker as shapley_ranking
from secateur.explain.shapley.ranker import score_shapley
from secateur.network.graph.execution import run_graph
from secateur.network.graph.topology import GATE, JOIN, find_topology, own_modules
from secateur.network.graph.trace import trace
from secateur.pipeline.recipe.recipe import Recipe


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.again(F.relu(self.first(x))))
        return self.head(F.relu(self.again(F.max_pool2d(x, 2))).mean((2, 3)))


class BesideTheImage(nn.Module):
    """A convolution that reads kernels and the image's own channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(8, 4, 3), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(torch.cat([x, F.relu(self.first(x))], 1))).mean((2, 3)))


class Normalised(nn.Module):
    """A LayerNorm between two of its layers; the others are read with channels apart."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 1), nn.Conv2d(6, 4, 3)
        self.norm, self.head = nn.GroupNorm(1, 6), nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        return self.head(F.relu(self.third(x)).mean((2, 3)))


class OnlyMixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 5, 3), nn.GroupNorm(1, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.norm(self.first(x)).mean((2, 3)))


@pytest.fixture
def network(tiny, shake, network_of):
    own = {kind.__name__: kind for kind in (Twice, BesideTheImage, Normalised, OnlyMixed)}

    def build(name):
        torch.manual_seed(0)
        return network_of(shake(own[name]()) if name in own else tiny(name))

    return build


def intervened(view, topology, target, images, background):
    """``[images, channels of the target, players]``: what the target loses when a player shows the background instead.

    A player of a sum loses the same whoever else plays. Of the two of a join the loss is the mean of that beside the other
    and that alone. Every loss is one of the network run on, image by image and background image by background image.
    """
    sites = [topology.sites[name] for name in target.sources]
    site, starts = target.site, [topology.sites[name].node for name in target.sources]
    own, other = run_graph(view, images, starts), run_graph(view, background, starts)
    after = own_modules(view, site)
    norm = bool(after) and isinstance(after[0], nn.BatchNorm2d)
    joined = site.kind in (JOIN, GATE)
    paid = site.reading if joined else next(iter(site.node.users)) if norm else site.node

    def worth(missing):
        """For each image, when of each site the channels ``missing`` shows the background."""
        values = []
        for index in range(len(images)):
            changes = {}
            for each, gone in zip(sites, missing, strict=True):
                dim = each.dim
                mask = gone.view([-1 if axis == dim else 1 for axis in range(other[each.node].dim())])
                mixed = torch.where(mask, other[each.node], own[each.node][index : index + 1])
                changes[each.node] = lambda _, mixed=mixed: mixed
            (value,) = run_graph(view, images[index : index + 1].expand_as(background), [paid], changes).values()
            value = value.movedim(site.dim, 1)
            values.append(value.reshape(*value.shape[:2], -1).mean((0, 2)))
        return torch.stack(values)

    def nobody_but(number, channel):
        return [torch.arange(each.channels) == (channel if place == number else -1) for place, each in enumerate(sites)]

    losses = []
    if joined:
        everything = [torch.zeros(each.channels, dtype=torch.bool) for each in sites]
        for number, each in enumerate(sites):
            mine = [~gone if place == number else gone for place, gone in enumerate(everything)]
            others = [~gone for gone in mine]
            nothing = [~gone for gone in everything]
            loss = 0.5 * (worth(everything) - worth(mine) + worth(others) - worth(nothing))
            padded = (site.channels - each.channels) // 2  # a shortcut has as many channels of zeros on both sides
            losses.append(torch.diag_embed(loss)[..., padded : padded + each.channels])
        return torch.cat(losses, 2)
    whole = worth([torch.zeros(each.channels, dtype=torch.bool) for each in sites])
    for number, each in enumerate(sites):
        losses += [whole - worth(nobody_but(number, channel)) for channel in range(each.channels)]
    return torch.stack(losses, 2)


def by_hand(network, images):
    """``{layer: [images, kernels]}``, in float64."""
    view = trace(network.module.double(), network.example().double())
    topology = find_topology(view, network.example().double())
    pixels = images.pixels().double()
    totals, depthwise = {}, []
    with torch.no_grad():
        for target in topology.targets.values():
            if not target.exact:
                continue
            module = view.get_submodule(str(target.site.node.target))
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
                depthwise.append((str(target.site.node.target), target.sources, module))
                continue
            size = intervened(view, topology, target, pixels, pixels).abs()
            shares = (size / size.sum(2, keepdim=True).clamp(min=1e-30)).mean(1)
            widths = [topology.sites[name].channels for name in target.sources]
            for name, share in zip(target.sources, shares.split(widths, 1), strict=True):
                layer = str(topology.sites[name].node.target)
                totals[layer] = totals.get(layer, 0) + share
    for layer, (source,), module in reversed(depthwise):  # one kernel's share is all of it: what is taken of it counts
        passed = totals[layer].view(len(pixels), module.in_channels, -1).sum(2)
        totals[str(topology.sites[source].node.target)] = (
            totals.get(str(topology.sites[source].node.target), 0) + passed
        )
    network.module.float()
    return totals


@pytest.mark.parametrize(
    "name", ["chain", "padded", "inverted", "grouped", "dense", "gated", "Twice", "BesideTheImage", "Normalised"]
)
def test_scores_are_what_running_on_without_each_kernel_takes(network, noise_images, name):
    subject, images = network(name), noise_images(6)
    scores = score_shapley(RankingTask(subject, images))
    found = by_hand(subject, images)
    head = {"padded": "linear"}.get(name, "head")
    wanted = {layer for layer, child in subject.module.named_modules() if isinstance(child, nn.Conv2d | nn.Linear)}
    wanted -= {head, *scores.details["no closed form"]}
    assert set(scores.layers) == set(scores.per_class) == wanted
    for layer in wanted:
        own = found[layer]
        assert torch.allclose(scores.layers[layer].double(), own.mean(0), atol=1e-5)
        for label in range(4):
            rows = own[images.labels == label]
            mean = rows.mean(0) if len(rows) else torch.zeros(own.shape[1]).double()
            assert torch.allclose(scores.per_class[layer][label].double(), mean, atol=1e-5)
    assert scores.details["images"] == scores.details["background"] == 6


def test_what_nothing_reads_with_channels_apart_is_named(network, noise_images):
    scores = score_shapley(RankingTask(network("Normalised"), noise_images(4)))
    assert scores.details["no closed form"] == {"second": "norm (GroupNorm)"}
    assert set(scores.layers) == {"first", "third"}


def test_a_network_without_any_closed_form_is_told_to_use_gap(network, noise_images):
    with pytest.raises(InputError, match=r"first: norm \(GroupNorm\).*gap"):
        score_shapley(RankingTask(network("OnlyMixed"), noise_images(4)))


def test_kernels_that_nobody_needs_score_nothing(network, noise_images):
    subject = network("chain")
    with torch.no_grad():
        subject.module.conv2.weight[:, 2] = 0
        subject.module.head.weight[:, [3, 7]] = 0
        subject.module.conv1.weight[5] = 0
        subject.module.bn1.bias[5] = 4
    scores = score_shapley(RankingTask(subject, noise_images(40))).layers
    assert float(scores["conv1"][2]) == 0
    assert float(scores["conv1"][5]) < 1e-6  # the same on all images
    assert scores["conv2"][[3, 7]].tolist() == [0, 0]
    alive = [kernel for kernel in range(8) if kernel not in (2, 5)]
    assert float(scores["conv1"][alive].min()) > 1e-3


def test_shares_of_one_reader_sum_to_one(network, noise_images):
    scores = score_shapley(RankingTask(network("chain"), noise_images(20))).layers
    assert [float(scores[layer].sum()) for layer in ("conv1", "conv2")] == pytest.approx([1, 1], abs=1e-5)


def test_the_first_images_count_and_the_seed_draws_the_background(network, noise_images, monkeypatch):
    subject, images = network("padded"), noise_images(60)
    monkeypatch.setattr(shapley_ranking, "MOST_IMAGES", 20)
    one, same, other = (score_shapley(RankingTask(subject, images, seed)) for seed in (0, 0, 1))
    assert (one.details["images"], one.details["background"]) == (20, 32)
    assert all(torch.equal(one.layers[layer], same.layers[layer]) for layer in one.layers)
    assert any(not torch.equal(one.layers[layer], other.layers[layer]) for layer in one.layers)
    background = images.sample(32, 0)
    monkeypatch.setattr(RankingTask, "batch_size", 7)
    monkeypatch.setattr(type(images), "sample", lambda *_: background)
    few = score_shapley(RankingTask(subject, images.subset(torch.arange(20))))
    assert all(torch.allclose(one.layers[layer], few.layers[layer], atol=1e-6) for layer in one.layers)


def test_it_ranks_the_digits_network(tmp_path):
    recipe = Recipe().override(
        page=False, rank_by="shapley", epochs=0, calibration=60, macs=0.6, allocation="uniform", repair="none"
    )
    recipe = replace(recipe, measurement=replace(recipe.measurement, batches=(1,)))
    result = prune_and_export(recipe, tmp_path / "run")
    scores = KernelScores.load(result.folder / "scores.safetensors")
    assert scores.method == "shapley"
    assert scores.details["no closed form"] == {}
    assert get_ranker("shapley").needs == "images"
