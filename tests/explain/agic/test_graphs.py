import pytest
import torch
from torch_geometric.loader import DataLoader

from secateur.common.errors import InputError
from secateur.explain.agic.build import GraphSettings, build_graphs
from secateur.explain.agic.graphs import AttributionGraphs
from secateur.explain.agic.layout import FED_BY, FEEDS

PARAMETERS, MAPS = 22, 20


@pytest.mark.parametrize("name", ["padded", "dense"])
def test_every_edge_has_its_reverse(case, tmp_path, name):
    graphs = build_graphs(*case(name), tmp_path)
    for source, target in graphs.layout.links:
        there, back = graphs[2][source, FEEDS, target], graphs[2][target, FED_BY, source]
        assert torch.equal(back.edge_index, there.edge_index[[1, 0]])
        assert torch.equal(back.edge_weight, there.edge_weight)
    assert set(graphs[2].edge_types) == set(graphs.layout.edge_types)


@pytest.mark.parametrize("name", ["graphs-00001.safetensors", "parameters.safetensors"])
@pytest.mark.parametrize("harm", ["cut short", "gone"])
def test_a_damaged_file_is_named(case, tmp_path, name, harm):
    build_graphs(*case("chain"), tmp_path, GraphSettings(batch_size=4))
    path = tmp_path / name
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{name}.*build the graphs again"):
        AttributionGraphs(tmp_path)[5]


def test_a_damaged_listing_is_named(case, tmp_path):
    inputs = case("chain")
    build_graphs(*inputs, tmp_path)
    (tmp_path / "graphs.json").write_text("{")
    with pytest.raises(InputError, match=r"graphs\.json"):
        AttributionGraphs(tmp_path)
    (tmp_path / "graphs.json").write_text("{}")
    with pytest.raises(InputError, match=r"graphs\.json"):
        AttributionGraphs(tmp_path)
    with pytest.raises(InputError, match="another network"):
        build_graphs(*inputs, tmp_path)


def test_graphs_are_counted_from_both_ends(case, tmp_path):
    graphs = build_graphs(*case("chain"), tmp_path, GraphSettings(batch_size=3))
    for near, far in ((-1, 6), (-7, 0), (torch.tensor(4), 4)):
        assert torch.equal(graphs[near]["conv1"].x, graphs[far]["conv1"].x)
        assert torch.equal(graphs[near].y, graphs[far].y)
    for index in (7, -8):
        with pytest.raises(IndexError, match="there are 7 graphs"):
            graphs[index]
    assert len(list(graphs)) == 7


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_loader_of_torch_geometric_reads_them(case, tmp_path, shuffle):
    network, images, others = case("padded")
    graphs = build_graphs(network, images, others, tmp_path, GraphSettings(batch_size=3))
    torch.manual_seed(1)
    batches = list(DataLoader(graphs, batch_size=4, shuffle=shuffle, num_workers=0))
    assert [batch.num_graphs for batch in batches] == [4, 3]
    labels = torch.cat([batch.y for batch in batches])
    assert labels.tolist() == images.labels.tolist() or (shuffle and labels.sort()[0].equal(images.labels.sort()[0]))
    first = batches[0]
    assert first["conv1"].x.shape == (32, PARAMETERS + MAPS)
    assert first["conv1"].batch.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    link = ("layer1.0.join", FEEDS, "layer2.0.join")
    assert first.output.shape == (4, 4)
    assert first[link].edge_index.shape == (2, 32)
    assert first[link].edge_index[1].max() < 64
