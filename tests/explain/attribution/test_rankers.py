import pytest
import torch

from attribution_cases import near
from secateur.explain.attribution import rankers
from secateur.explain.attribution.attributions import METHODS, attribute
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.network.images.load import load_images
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings


@pytest.mark.parametrize("method", METHODS)
def test_the_digits_network_is_ranked(method, monkeypatch):
    monkeypatch.setattr(rankers, "IMAGES", 20)
    network = load_model(ModelSettings())
    images = load_images("digits", network.preprocessing).train
    scores = rank_kernels(RankingTask(network, images, seed=3), method)
    assert scores.method == method
    assert scores.details["images"] == 20
    assert scores.details["statistic"] == "root_mean_square"
    found = attribute(network, images.sample(20, 3), method)
    for layer, values in found.layers.items():
        assert near(scores.layers[layer], values.double().square().mean(0).sqrt().float(), 1e-4)
        assert scores.layers[layer].dtype == torch.float32
        for label in range(10):
            assert torch.allclose(scores.per_class[layer][label], values[found.labels == label].mean(0), atol=1e-4)
        assert bool(scores.layers[layer].any())
