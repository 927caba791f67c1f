import pytest

from secateur.explain.scores import RankingTask
from secateur.explain.settings import PicnnSettings
from secateur.network.images.digits_images import load_digits_splits
from secateur.network.load import load_model


@pytest.fixture(scope="module")
def task(tiny, network_of, noise_images, spread):
    network, images = spread(network_of(tiny("Padded")), noise_images(120))
    return RankingTask(network, images, picnn=PicnnSettings(post_hoc_steps=40, batch_size=32))


@pytest.fixture(scope="module")
def digits():
    network = load_model("digits")
    return network, load_digits_splits(network.preprocessing)
