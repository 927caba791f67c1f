import dataclasses

import pytest

from coalitions import inputs
from shapley_cases import SHAPE


@pytest.fixture
def case(shake, network_of, noise_images):
    def build(module, images=3, background=4):
        network, others = network_of(shake(module), SHAPE, 3), noise_images(background, SHAPE, 3, 2, 0.4, 0.3)
        network = dataclasses.replace(network, preprocessing=others.preprocessing)
        return network, inputs(noise_images(images, SHAPE, 3, 1, 0.4, 0.3)), others

    return build
