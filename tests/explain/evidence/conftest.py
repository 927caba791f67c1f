import pytest

from secateur.network.graph.topology import IMAGE, find_topology
from secateur.network.graph.trace import trace


@pytest.fixture
def traced(tiny, network_of):
    def build(name):
        network = network_of(tiny(name))
        view = trace(network.module, network.example())
        sites = [site for site in find_topology(view, network.example()).sites.values() if site.kind != IMAGE]
        return network, view, sites

    return build
