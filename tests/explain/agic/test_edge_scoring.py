from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError, UsageError
from secateur.explain.agic.build import GraphSettings, build_graphs
from secateur.explain.agic.edge_scoring import EdgeAggregation, EdgeScoringSettings, train_edge_scoring
from secateur.explain.agic.encoder import EncoderSettings, GraphEncoder, Standardiser, embed
from secateur.explain.shapley.explainer import ShapleyExplainer

BRIEF = EdgeScoringSettings(steps=400, hidden=32, by_class=0.0)


class Two(nn.Module):
    """Two convolutions and a head; ``USELESS`` kernels of each feed nothing."""

    USELESS = (1, 4)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def network(network_of, shake, spread, noise_images):
    module = shake(Two())
    with torch.no_grad():
        module.second.weight[:, list(Two.USELESS)] = 0
        module.head.weight[:, list(Two.USELESS)] = 0
    return spread(network_of(module), noise_images(64))[0]


@pytest.fixture(scope="module")
def images(noise_images):
    return noise_images(48, seed=1)


@pytest.fixture(scope="module")
def made(network, images, tmp_path_factory):
    """Graphs with every edge, and their embeddings by an encoder as it was made."""

    def build(count=16):
        folder = tmp_path_factory.mktemp("graphs")
        graphs = build_graphs(network, images, images, folder, GraphSettings(edges=count, background=12, batch_size=20))
        standardiser = Standardiser.fit(graphs)
        encoder = GraphEncoder(graphs.layout, standardiser.features, EncoderSettings(width=8))
        return graphs, embed(encoder, standardiser, graphs)

    return build


def whole(aggregation, rows):
    return {name: torch.ones(len(rows), aggregation.nodes[name]) for name in aggregation.kernels}


@pytest.mark.parametrize("count", [2, 16])
def test_with_everything_kept_the_scores_are_the_networks(network, images, made, count):
    aggregation, rows = EdgeAggregation(made(count)[0]), torch.tensor([3, 40, 7])
    inputs = images.preprocessing.normalise(images.pixels(rows))
    with torch.no_grad():
        assert torch.allclose(aggregation(whole(aggregation, rows), rows), network.logits(inputs), atol=5e-3)


def test_last_kernels_that_are_not_kept_count_as_they_are_on_average(network, images, made):
    """The head's game is additive: without a kernel's Shapley value it is as if the head had read the kernel's background."""
    aggregation, rows = EdgeAggregation(made()[0]), torch.arange(5)
    keep = whole(aggregation, rows)
    kept = torch.tensor([1.0, 1, 0, 1, 1, 0, 0, 1])
    keep["second"] = kept.expand(5, -1)
    module = network.module
    background = images.sample(12, 0)

    def pooled(pixels):
        return F.relu(module.second(F.relu(module.first(images.preprocessing.normalise(pixels))))).mean((2, 3))

    with torch.no_grad():
        usual = pooled(background.pixels()).mean(0)
        all_logits = network.logits(images.preprocessing.normalise(images.pixels())).mean(0)
        expected = module.head(kept * pooled(images.pixels(rows)) + (1 - kept) * usual)
        # with nothing kept the scores are their average over the graphs, not over the background
        shift = all_logits - module.head(usual)
        rest = 1 - kept.mean()
        found = aggregation(keep, rows)
    assert torch.allclose(found, expected + shift * (1 - rest) + shift * rest - shift * kept.mean(), atol=2e-2)


def test_what_is_left_of_a_reader_is_the_share_of_its_edges(network, images, made):
    """Two layers deep, against loops over the Shapley values themselves."""
    graphs = made()[0]
    aggregation, rows = EdgeAggregation(graphs), torch.tensor([9])
    generator = torch.Generator().manual_seed(2)
    keep = {name: torch.rand(1, aggregation.nodes[name], generator=generator) for name in aggregation.kernels}
    inputs = images.preprocessing.normalise(images.pixels(rows))
    values = {found.target: found.values[0] for found in ShapleyExplainer(network, images.sample(12, 0))(inputs)}
    with torch.no_grad():
        average = network.logits(images.preprocessing.normalise(images.pixels())).mean(0)
        logits = network.logits(inputs)[0]
    left = []
    for reader in range(8):
        sizes = [abs(float(values["second"][reader, kernel])) for kernel in range(6)]
        held = sum(size * float(keep["first"][0, kernel]) for kernel, size in enumerate(sizes))
        left.append(held / sum(sizes) * float(keep["second"][0, reader]))
    for label in range(4):
        direct = [float(values["head"][label, kernel]) for kernel in range(8)]
        expected = float(average[label]) + sum(value * share for value, share in zip(direct, left, strict=True))
        expected += (float(logits[label] - average[label]) - sum(direct)) * sum(left) / 8
        assert float(aggregation(keep, rows)[0, label]) == pytest.approx(expected, abs=1e-2)


def test_kernels_that_nothing_reads_are_given_up_first(made):
    graphs, embeddings = made()
    layers, per_class = train_edge_scoring(graphs, embeddings, BRIEF)
    assert {name: len(scores) for name, scores in layers.items()} == {"first": 6, "second": 8}
    for name, scores in layers.items():
        useless = torch.zeros(len(scores), dtype=torch.bool).index_fill(0, torch.tensor(Two.USELESS), True)
        assert float(scores[useless].max()) < float(scores[~useless].median())
        assert float(scores.mean()) == pytest.approx(0.5, abs=1e-4)  # the mean of the keep rates
        assert per_class[name].shape == (4, len(scores))


def test_seeds_decide_and_progress_is_told(made):
    graphs, embeddings = made()
    told = []
    brief = replace(BRIEF, steps=5)
    runs = [
        train_edge_scoring(graphs, embeddings, replace(brief, seed=seed), progress=lambda *step: told.append(step))[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0]["second"], runs[1]["second"])
    assert not torch.equal(runs[0]["second"], runs[2]["second"])
    assert told == [(step, 5) for step in range(1, 6)] * 3


def test_a_class_without_images_has_no_scores(network, images, tmp_path):
    some = images.subset((images.labels != 2).nonzero().flatten())
    graphs = build_graphs(network, some, some, tmp_path, GraphSettings(background=8))
    standardiser = Standardiser.fit(graphs)
    encoder = GraphEncoder(graphs.layout, standardiser.features, EncoderSettings(width=8))
    _, per_class = train_edge_scoring(graphs, embed(encoder, standardiser, graphs), replace(BRIEF, steps=3))
    for scores in per_class.values():
        assert not scores[2].any()
        assert bool((scores[[0, 1, 3]] > 0).all())


def test_classes_that_no_exact_link_reaches_are_refused(network_of, shake, images, tmp_path):
    module = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.GroupNorm(1, 5)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)),
    )
    graphs = build_graphs(network_of(shake(module)), images, images, tmp_path, GraphSettings(background=8))
    assert set(graphs.unlinked) == {"6"}
    with pytest.raises(InputError, match="lead to this network's classes"):
        EdgeAggregation(graphs)
    estimated = build_graphs(
        network_of(module), images.subset(torch.arange(3)), images, tmp_path / "more", GraphSettings(permutations=1)
    )
    assert not estimated.unlinked
    assert estimated.explainers["2"] == "closed form"
    assert "1 permutations, background of 8 images" in estimated.explainers["6"]
    rows = torch.arange(3)
    aggregation = EdgeAggregation(estimated)
    assert torch.allclose(aggregation(whole(aggregation, rows), rows), aggregation.outputs, atol=5e-3)


@pytest.mark.parametrize("setting", [{"steps": 0}, {"hidden": 0}, {"temperature": 0.0}, {"by_class": 1.5}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UsageError, match=next(iter(setting))):
        EdgeScoringSettings(**setting)


class Behind(nn.Module):
    """A head with something behind it, or with another beside it; a first layer that nothing exact leads on from."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.second = how, nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.norm, self.head, self.other = nn.GroupNorm(2, 6), nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, x):
        before = self.first(x)
        if self.how == "unread":
            before = self.norm(before)
        x = self.head(F.relu(self.second(F.relu(before))).mean((2, 3)))
        if self.how == "two heads":
            return x + self.other(F.relu(before).mean((2, 3)))
        return {"softmax": lambda: x.softmax(1), "scaled": lambda: 0.1 * x}.get(self.how, lambda: x)()


@pytest.mark.parametrize("how", ["softmax", "scaled", "two heads"])
def test_the_heads_own_scores_are_aggregated(network_of, shake, images, tmp_path, how):
    """Not what is behind it; and of two heads their sum."""
    network = network_of(shake(Behind(how)))
    aggregation, rows = EdgeAggregation(build_graphs(network, images, images, tmp_path)), torch.arange(5)
    inputs = images.preprocessing.normalise(images.pixels(rows))
    with torch.no_grad():
        found, output = aggregation(whole(aggregation, rows), rows), network.logits(inputs)
    if how == "softmax":
        assert torch.allclose(found.softmax(1), output, atol=5e-3)
    else:
        assert torch.allclose(found, output * (10 if how == "scaled" else 1), atol=2e-2)
    keep = {name: torch.zeros(5, aggregation.nodes[name]) for name in aggregation.kernels}
    assert torch.allclose(aggregation(keep, rows), aggregation.outputs.mean(0).expand(5, -1), atol=5e-3)


def test_layers_from_which_no_edges_lead_to_the_classes_are_not_scored(network_of, shake, images, tmp_path):
    graphs = build_graphs(network_of(shake(Behind("unread"))), images, images, tmp_path)
    assert "first" in graphs.layout.nodes
    assert EdgeAggregation(graphs).kernels == ("second",)
