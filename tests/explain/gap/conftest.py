import pytest


@pytest.fixture
def case(tiny, network_of, noise_images):
    def build(name, count=10, seed=0):
        return network_of(tiny(name, seed)), noise_images(count, seed=seed)

    return build
