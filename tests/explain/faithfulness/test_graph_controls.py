import pytest
import torch

from secateur.common.errors import UsageError
from secateur.explain.faithfulness.graph_controls import CONTROLS, ControlledGraphs


def controlled(planted, name, **others):
    return ControlledGraphs(planted(4), name, planted.layout, **others)


def same(first, second):
    tensors = [
        {str((key, name)): value for key, store in (*g.node_items(), *g.edge_items()) for name, value in store.items()}
        for g in (first, second)
    ]
    return all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


@pytest.mark.parametrize("name", CONTROLS)
def test_the_graph_given_stays_as_it_was(planted, name):
    graphs = planted(2)
    graph = ControlledGraphs(graphs, name, planted.layout, ("layer1.0",))[1]
    assert same(graphs[1], planted(2)[1])
    assert torch.equal(graph.y, graphs[1].y)
    assert same(graph, graphs[1]) == (name == "full")


def test_what_is_taken_away(planted):
    (graph, *_), bare = planted(1), controlled(planted, "without_classes", last_stage=("layer1.0",))[0]
    for edge_type, store in bare.edge_items():
        assert len(store["edge_weight"]) == (0 if "head" in edge_type else len(graph[edge_type].edge_weight))
    for name in planted.layout.nodes:
        constant = name in ("head", "layer1.0")
        assert torch.equal(bare[name].x, torch.zeros_like(graph[name].x) if constant else graph[name].x)
    alone = controlled(planted, "nodes_only")[0]
    assert all(store["edge_index"].shape == (2, 0) for store in alone.edge_stores)
    assert all(torch.equal(alone[name].x, graph[name].x) for name in planted.layout.nodes)
    linked = controlled(planted, "edges_only")[0]
    assert all(torch.equal(store["edge_index"], graph[key].edge_index) for key, store in linked.edge_items())
    assert not any(store["x"].any() for store in linked.node_stores)


def test_shuffling_relabels_all_links_alike(planted):
    """One permutation of each node type takes every link of the graph, of both relations, to one of the shuffled graph."""
    graphs, mixed = planted(2), controlled(planted, "shuffled")
    for graph, other in zip(graphs, (mixed[0], mixed[1]), strict=True):
        places = {}
        for (source, relation, target), store in graph.edge_items():
            assert torch.equal(store["edge_weight"], other[source, relation, target].edge_weight)
            for name, before, after in zip(
                (source, target), store["edge_index"], other[source, relation, target].edge_index, strict=True
            ):
                for node, place in zip(before.tolist(), after.tolist(), strict=True):
                    assert places.setdefault((name, node), place) == place
        assert len({(name, place) for (name, _), place in places.items()}) == len(places)
        assert any(node != place for (_, node), place in places.items())
        assert all(torch.equal(other[name].x, graph[name].x) for name in planted.layout.nodes)
    assert same(mixed[0], controlled(planted, "shuffled")[0])
    assert not same(mixed[0], controlled(planted, "shuffled", seed=1)[0])
    first, fourth = ControlledGraphs([graphs[0], graphs[0]], "shuffled", planted.layout)
    assert not same(first, fourth)


def test_unknown_names_are_refused(planted):
    with pytest.raises(UsageError, match="nodes_only"):
        controlled(planted, "none")
    with pytest.raises(UsageError, match="layer9"):
        controlled(planted, "full", last_stage=("layer9",))
