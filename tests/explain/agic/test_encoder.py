import pytest
import torch
from torch_geometric.nn.models import DeepGraphInfomax

from secateur.common.errors import InputError, UsageError
from secateur.explain.agic.batch import NodeOrder, collate
from secateur.explain.agic.encoder import EncoderSettings, GraphEncoder, Standardiser, embed, infomax_loss, pretrain

BRIEF = EncoderSettings(width=8, steps=8, batch_size=8)


def encoder_of(planted, graphs, settings=BRIEF):
    standardiser = Standardiser.fit(graphs)
    return GraphEncoder(planted.layout, standardiser.features, settings), standardiser


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_torch_geometric_agrees_on_the_loss_of_one_graph():
    peer = DeepGraphInfomax(6, torch.nn.Identity(), lambda z: torch.sigmoid(z.mean(0)), lambda z: z)
    positive, negative = random(1, 30, 6), 3 * random(1, 30, 6, seed=1)
    wanted = peer.loss(positive[0], negative[0], peer.summary(positive[0]))
    assert infomax_loss(positive, negative, peer.weight).item() == pytest.approx(wanted.item(), abs=1e-6)


def test_the_loss_of_several_graphs_by_hand():
    positive, negative, weight = random(3, 5, 4), random(3, 5, 4, seed=1), random(4, 4, seed=2)
    true, corrupted, other = [], [], []
    summaries = [torch.sigmoid(positive[g].mean(0)) for g in range(3)]
    for g in range(3):
        for v in range(5):
            true.append(torch.sigmoid(positive[g, v] @ weight @ summaries[g]).log())
            corrupted.append((1 - torch.sigmoid(negative[g, v] @ weight @ summaries[g])).log())
            other.append((1 - torch.sigmoid(positive[g, v] @ weight @ summaries[g - 1])).log())
    wanted = -sum(true) / 15 - (sum(corrupted) + sum(other)) / 30
    assert infomax_loss(positive, negative, weight).item() == pytest.approx(wanted.item(), abs=1e-5)


def test_features_are_standardised_over_graphs_and_nodes(planted):
    graphs = planted(5)
    for graph in graphs:
        graph["conv1"].x[:, 2] = 0.1
    standardiser = Standardiser.fit(graphs)
    for name in planted.layout.nodes:
        whole = torch.cat([graph[name].x for graph in graphs])
        wanted = (whole.double() - whole.double().mean(0)) / whole.double().std(0, correction=0)
        if name == "conv1":
            wanted[:, 2] = 0
        found = standardiser({name: whole})[name]
        assert torch.allclose(found.double(), wanted, atol=1e-5)


def test_features_that_are_not_numbers_are_refused(planted):
    graphs = planted(2)
    graphs[1]["head"].x[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"Graph 1 .*'head'"):
        Standardiser.fit(graphs)
    with pytest.raises(InputError, match="no attribution graphs"):
        Standardiser.fit([])


def test_relabelled_nodes_have_relabelled_embeddings(planted):
    graphs = planted(1)
    encoder, standardiser = encoder_of(planted, graphs)
    (relabelled,) = planted(1)
    generator = torch.Generator().manual_seed(3)
    places = {name: torch.randperm(count, generator=generator) for name, count in planted.layout.nodes.items()}
    for name, place in places.items():
        relabelled[name].x[place] = graphs[0][name].x
    for (source, _, target), store in relabelled.edge_items():
        sources, targets = store["edge_index"]
        store["edge_index"] = torch.stack([places[source][sources], places[target][targets]])
    before, after = embed(encoder, standardiser, graphs), embed(encoder, standardiser, [relabelled])
    for name, place in places.items():
        assert torch.allclose(after[name][0, place], before[name][0], atol=1e-5)
        assert not torch.allclose(after[name], before[name], atol=1e-2)


def test_a_link_reaches_as_far_as_there_are_rounds(planted):
    """Through two rounds a kernel of conv1 hears of the head's features, which are two links away; through one it does not."""
    for rounds, heard in ((1, False), (2, True)):
        graphs = planted(1)
        encoder, standardiser = encoder_of(planted, planted(3), EncoderSettings(width=8, rounds=rounds))
        before = embed(encoder, standardiser, graphs)["conv1"]
        graphs[0]["head"].x += 5
        assert bool((embed(encoder, standardiser, graphs)["conv1"] != before).any()) == heard


def test_training_lowers_the_loss_and_is_the_same_by_seed(planted):
    graphs = planted(32, "features")
    runs = []
    for seed in (0, 0, 1):
        settings = EncoderSettings(width=8, steps=40, batch_size=8, learning_rate=3e-3, seed=seed)
        encoder, standardiser = encoder_of(planted, graphs, settings)
        told = []
        losses = pretrain(
            encoder, standardiser, graphs, progress=lambda done, total, told=told: told.append((done, total))
        )
        assert told == [(step, 40) for step in range(1, 41)]
        runs.append((losses, embed(encoder, standardiser, graphs).values))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])
    assert sum(runs[0][0][-4:]) < sum(runs[0][0][:4])


def test_embeddings_are_those_of_each_graph_alone(planted):
    graphs = planted(11)
    encoder, standardiser = encoder_of(planted, graphs)
    found = embed(encoder, standardiser, graphs)
    order = NodeOrder(planted.layout)
    for index in (0, 7, 10):
        batch = collate([graphs[index]], planted.layout, order)
        with torch.no_grad():
            alone = encoder(standardiser(batch.features), batch.links)[0]
        assert torch.allclose(found.values[index], alone, atol=1e-5)
        assert torch.equal(found["layer1.0"][index], found.values[index, 15:24])
    assert found.labels.tolist() == [index % 3 for index in range(11)]
    assert found.outputs.shape == (11, 3)


def test_memory_is_kept_to(planted):
    graphs = planted(4)
    encoder, standardiser = encoder_of(planted, graphs)
    whole = embed(encoder, standardiser, graphs)
    needed = whole.values.numel() * 4
    half = embed(encoder, standardiser, graphs, memory_bytes=needed - 1)
    assert (whole.values.dtype, half.values.dtype) == (torch.float32, torch.float16)
    assert torch.allclose(whole.values, half.values.float(), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="fewer images"):
        embed(encoder, standardiser, graphs, memory_bytes=needed // 2 - 1)


def test_settings_out_of_range_are_refused():
    for setting in ({"width": 0}, {"rounds": -1}, {"steps": -1}, {"batch_size": 0}, {"learning_rate": 0}):
        with pytest.raises(UsageError, match=next(iter(setting))):
            EncoderSettings(**setting)
