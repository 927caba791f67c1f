from dataclasses import replace

import pytest
import torch
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GraphConv, HeteroConv

from secateur.common.errors import InputError
from secateur.explain.agic.batch import NodeOrder, collate
from secateur.explain.agic.encoder import EncoderSettings, GraphEncoder


def dense(sparse, columns):
    matrix = torch.zeros(len(sparse.starts), columns)
    lengths = torch.diff(sparse.starts, append=torch.tensor([len(sparse.columns)]))
    rows = torch.arange(len(lengths)).repeat_interleave(lengths)
    return matrix.index_put((rows, sparse.columns), sparse.values, accumulate=True)


def test_torch_geometric_agrees_on_the_messages(planted):
    """HeteroConv of GraphConv with the same weights, on a batch that torch-geometric's loader made; outputs and gradients."""
    width, layout = 5, planted.layout
    graphs, order = planted(4), NodeOrder(layout)
    features = dict.fromkeys(layout.nodes, 7)
    encoder = GraphEncoder(layout, features, EncoderSettings(width=width, rounds=1))
    layer = encoder.rounds[0]
    hidden = torch.randn(4, order.nodes, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = layer.messages(hidden, collate(graphs, layout, order).links)

    peer = HeteroConv({edge_type: GraphConv(width, width) for edge_type in layout.edge_types}, aggr="sum")
    with torch.no_grad():
        for linear, name in zip(layer.maps, layout.nodes, strict=True):
            arriving = [edge_type for edge_type in layout.edge_types if edge_type[2] == name]
            *relations, root = linear.weight.split(width, 1)
            for edge_type, relation in zip(arriving, relations, strict=True):
                conv = peer.convs[edge_type]
                conv.lin_rel.weight.copy_(relation)
                conv.lin_rel.bias.copy_(linear.bias / len(arriving))
                conv.lin_root.weight.copy_(root / len(arriving))
    (batch,) = DataLoader(graphs, batch_size=4)
    parts = zip(layout.nodes, hidden.split(list(layout.nodes.values()), 1), strict=True)
    parts = {name: part.reshape(-1, width) for name, part in parts}
    wanted = peer(parts, batch.edge_index_dict, edge_weight_dict=batch.edge_weight_dict)
    wanted = torch.cat([wanted[name].view(4, -1, width) for name in layout.nodes], 1)
    assert torch.allclose(found, wanted, atol=1e-5)
    gradients = [torch.autograd.grad(value.square().sum(), hidden)[0] for value in (found, wanted)]
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


def test_the_transpose_is_the_transpose(planted):
    order = NodeOrder(planted.layout)
    links = collate(planted(3), planted.layout, order).links
    matrix, transposed = dense(links.matrix, 3 * order.nodes), dense(links.transposed, 3 * order.slot_count)
    assert torch.equal(matrix.T, transposed)
    assert int((matrix != 0).sum()) == sum(len(store["edge_weight"]) for g in planted(3) for store in g.edge_stores)


def test_features_and_labels_keep_their_graph(planted):
    graphs = planted(4)
    batch = collate(graphs, planted.layout, NodeOrder(planted.layout))
    assert all(torch.equal(batch.features["conv1"][i], graph["conv1"].x) for i, graph in enumerate(graphs))
    assert batch.labels.tolist() == [0, 1, 2, 0]
    assert batch.outputs.argmax(1).tolist() == [0, 1, 2, 0]


def test_a_node_type_without_links_hears_only_itself(planted):
    layout = replace(planted.layout, links=planted.layout.links[:3])
    graphs = planted(2)
    for graph in graphs:
        del graph["layer1.0", "feeds", "head"], graph["head", "fed_by", "layer1.0"]
    encoder = GraphEncoder(layout, dict.fromkeys(layout.nodes, 7), EncoderSettings(width=5, rounds=1))
    hidden = torch.randn(2, 27, 5, generator=torch.Generator().manual_seed(0))
    found = encoder.rounds[0].messages(hidden, collate(graphs, layout, encoder.order).links)
    assert torch.allclose(found[:, 24:], encoder.rounds[0].maps[3](hidden[:, 24:]), atol=1e-6)


def test_a_graph_of_another_network_is_refused(planted):
    def without(kind):
        (graph,) = planted(1)
        if kind == "node":
            graph["conv1"].x = graph["conv1"].x[1:]
        elif kind == "type":
            graph["other"].x = torch.zeros(2, 7)
        else:
            graph["conv1", "skips", "head"].edge_index = torch.zeros(2, 0, dtype=torch.long)
        return graph

    for kind, message in (("node", "5 nodes of type 'conv1'"), ("type", "'other'"), ("link", "skips")):
        with pytest.raises(InputError, match=message):
            collate([without(kind)], planted.layout, NodeOrder(planted.layout))
