import torch

from gap_by_hand import by_hand, close
from secateur.explain.gap import rankers as gap
from secateur.explain.gap.contributions import contributions
from secateur.explain.gap.decisions import ClassDecision
from secateur.explain.gap.decomposition import Decomposer
from secateur.explain.gap.levels import DecompositionSettings
from secateur.explain.gap.near_duplicates import Selection
from secateur.explain.registry import get_ranker
from secateur.explain.scores import RankingTask


def test_the_ranking_is_root_mean_square_against_the_mean(case):
    network, images = case("chain")
    scores = gap.score_gap(RankingTask(network, images))
    found = contributions(network, images)
    for layer, rows in by_hand(network.module, images).items():
        average = torch.stack([activation.mean((1, 2)) for activation, _ in rows]).mean(0).view(-1, 1, 1)
        alpha = torch.stack([(gradient * (activation - average)).mean((1, 2)) for activation, gradient in rows])
        assert close(scores.layers[layer], alpha.square().mean(0).sqrt())
        assert torch.equal(scores.per_class[layer], found.per_class("mean")[layer])
    assert set(scores.per_class) == set(found.layers)


def test_the_ranker_scores_every_layer(case, noise_images):
    network, _ = case("padded", seed=1)
    images = noise_images(9, seed=4)
    scores = get_ranker("gap-hierarchical").score(RankingTask(network, images))
    inputs, labels = next(images.batches(9))
    settings = DecompositionSettings(selection=Selection(top=8), most=16, between=True)
    decomposer = Decomposer(network, settings)
    decomposer.subtract_averages(images, 4)
    got = decomposer(inputs, ClassDecision(labels))
    assert set(scores.layers) == set(get_ranker("gap").score(RankingTask(network, images)).layers)
    for layer, values in scores.layers.items():
        assert torch.allclose(values, got.layer_importance[layer].square().mean(0).sqrt(), atol=1e-6)
        assert scores.per_class[layer].shape == (4, len(values))
