"""Small attribution graphs of a network that does not exist, with the class planted where a test wants it."""

import pytest
import torch
from torch_geometric.data import HeteroData

from secateur.explain.agic.layout import GraphLayout

NODES = {"conv1": 6, "layer1.0.conv1": 9, "layer1.0": 9, "head": 3}
KINDS = {"conv1": "kernel", "layer1.0.conv1": "kernel", "layer1.0": "join", "head": "class"}
LINKS = (("conv1", "layer1.0.conv1"), ("conv1", "layer1.0"), ("layer1.0.conv1", "layer1.0"), ("layer1.0", "head"))
CLASSES, CONSTANTS, MAP_FEATURES = 3, 4, 3


class Planted:
    """Graphs whose features and links are noise, but for the class: in ``features`` of the maps, in ``edges``, or nowhere."""

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        parameters = {name: torch.randn(count, CONSTANTS, generator=generator) for name, count in NODES.items()}
        self.layout = GraphLayout(NODES, KINDS, parameters, LINKS, CLASSES)

    def __call__(self, count, where="nowhere", seed=0):
        generator = torch.Generator().manual_seed(seed)
        return [self._graph(index % CLASSES, where, generator) for index in range(count)]

    def _graph(self, label, where, generator):
        graph = HeteroData()
        for name, count in NODES.items():
            maps = torch.randn(count, MAP_FEATURES, generator=generator)
            if where == "features" and name == "layer1.0.conv1":
                maps[:, label] += 2
            graph[name].x = torch.cat([self.layout.parameters[name], 3 + 5 * maps], 1)
        for source, target in LINKS:
            pairs, weights = self._links(source, target, label, where, generator)
            graph[source, "feeds", target].edge_index = pairs
            graph[target, "fed_by", source].edge_index = pairs.flip(0)
            graph[source, "feeds", target].edge_weight = graph[target, "fed_by", source].edge_weight = weights
        graph.y = graph.prediction = torch.tensor([label])
        graph.output = torch.nn.functional.one_hot(graph.y, CLASSES).float() * 4
        return graph

    def _links(self, source, target, label, where, generator):
        """Two for each target. In ``edges``, the class says which kernels of conv1 stand where; the structure is the same."""
        sources, targets = NODES[source], NODES[target]
        ends = torch.arange(targets).repeat_interleave(2)
        if where == "edges":
            turn = 2 * label if source == "conv1" else 0
            starts = (ends + torch.tensor([0, 1]).repeat(targets) + turn) % sources
            return torch.stack([starts, ends]), torch.full((2 * targets,), 0.5)
        starts = torch.stack([torch.randperm(sources, generator=generator)[:2] for _ in range(targets)]).flatten()
        share = torch.rand(targets, generator=generator)
        sign = torch.randint(0, 2, (2 * targets,), generator=generator) * 2 - 1
        return torch.stack([starts, ends]), torch.stack([share, 1 - share], 1).flatten() * sign


@pytest.fixture(scope="session")
def planted():
    """Makes graphs: ``planted(count, where, seed)``; ``planted.layout`` is their layout."""
    return Planted()
