import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from secateur import load_model
from secateur.common.errors import InputError, UsageError
from secateur.explain.agic.build import GraphSettings, build_graphs
from secateur.explain.agic.graphs import AttributionGraphs
from secateur.explain.agic.layout import FEEDS
from secateur.explain.shapley.explainer import ShapleyExplainer
from secateur.network.graph.channel_origins import NONE
from secateur.network.images.load import load_images
from secateur.network.settings import ModelSettings

PARAMETERS, MAPS = 22, 20

HALF = 1e-3  # float16 keeps 11 bits


def pixels_of(images):
    return images.preprocessing.normalise(images.pixels())


def links_of(graph, target, layout):
    """The edges into a target as a matrix ``[its nodes, the nodes of all others]``, and how many lead to each of its nodes."""
    blocks, count = [], torch.zeros(layout.nodes[target], dtype=torch.long)
    for source, _ in [link for link in layout.links if link[1] == target]:
        store = graph[source, FEEDS, target]
        block = torch.zeros(layout.nodes[target], layout.nodes[source])
        block.index_put_((store.edge_index[1], store.edge_index[0]), store.edge_weight, accumulate=True)
        count += torch.bincount(store.edge_index[1], minlength=len(count))
        blocks.append(block)
    return torch.cat(blocks, 1), count


def shares_by_hand(values, players, most):
    """Of one image ``[channels, players]``: each row over the sum of its sizes, the ``most`` largest kept; and how many are."""
    matrix, counts = torch.zeros(len(values), players), []
    for row, (own, who) in enumerate(zip(values.tolist(), values.players_of, strict=True)):
        total = sum(map(abs, own))
        order = sorted(range(len(own)), key=lambda place: -abs(own[place]))[:most]
        chosen = [place for place in order if who[place] != NONE]
        for place in chosen:
            matrix[row, who[place]] += own[place] / total if total else 0
        counts.append(len(chosen))
    return matrix, torch.tensor(counts)


@pytest.mark.parametrize("name", ["chain", "padded", "inverted", "grouped", "dense", "gated", "TwoHeads", "Doubled"])
@pytest.mark.parametrize("edges", [3, 100])
def test_edges_are_the_shapley_values_of_the_image_alone(case, tmp_path, name, edges):
    network, images, others = case(name)
    graphs = build_graphs(network, images, others, tmp_path, GraphSettings(edges=edges, background=5, batch_size=3))
    explainer = ShapleyExplainer(network, others.sample(5, 0))
    assert not graphs.unlinked
    assert len(graphs) == 7
    assert {target for _, target in graphs.layout.links} == set(explainer.targets)
    for index in range(7):
        graph = graphs[index]
        for found in explainer(pixels_of(images)[index : index + 1]):
            values = found.values[0]
            values.players_of = found.players.expand(values.shape).tolist()
            got, counts = links_of(graph, found.target, graphs.layout)
            wanted, wanted_counts = shares_by_hand(values, got.shape[1], edges)
            assert [link[0] for link in graphs.layout.links if link[1] == found.target] == list(found.sources)
            assert torch.allclose(got, wanted, atol=HALF), found.target
            assert torch.equal(counts, wanted_counts)
            kept = graphs.kept(found.target)[index]
            assert torch.allclose(kept, got.abs().sum(1), atol=HALF * edges)
            if edges == 100:  # all of them
                whole = got.abs().sum(1)
                assert bool(torch.isclose(whole, torch.ones(()), atol=HALF * 20).logical_or(whole == 0).all())
    assert any(bool((graph[link[0], FEEDS, link[1]].edge_weight < 0).any()) for link in graphs.layout.links)


def test_padded_channels_of_a_shortcut_have_one_edge(case, tmp_path):
    """Of the 16 channels behind the padding the first and last four show zeros."""
    graphs = build_graphs(*case("padded"), tmp_path)
    shortcut = graphs[0]["layer1.0.join", FEEDS, "layer2.0.join"].edge_index
    assert shortcut[1].tolist() == list(range(4, 12))
    assert shortcut[0].tolist() == list(range(8))
    assert graphs[0]["layer2.0.conv2", FEEDS, "layer2.0.join"].edge_index.tolist() == [list(range(16))] * 2


def test_a_kernel_that_meets_itself_has_one_edge(case, tmp_path):
    edges = build_graphs(*case("Doubled"), tmp_path)[0]["first", FEEDS, "join"].edge_index
    assert sorted(map(tuple, edges.T.tolist())) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (2, 2), (3, 3)]


def test_nodes_know_their_maps(case, tmp_path):
    """Against the plain module's own values: behind BatchNorm and activation, of a join behind its ReLU."""
    network, images, others = case("padded")
    graphs = build_graphs(network, images, others, tmp_path, GraphSettings(batch_size=3))
    module, caught = network.module, {}
    hook = module.layer1[0].register_forward_hook(lambda _, __, out: caught.__setitem__("layer1.0.join", out))
    with torch.no_grad():
        x = pixels_of(images)
        module(x)
        caught["conv1"] = F.relu(module.bn1(module.conv1(x)))
        block = module.layer2[0]
        caught["layer2.0.conv2"] = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(caught["layer1.0.join"])))))
    hook.remove()
    for name, maps in caught.items():
        told = torch.stack([graph[name].x[:, graphs.layout.parameters[name].shape[1] :] for graph in graphs])
        flat = maps.flatten(2)
        moments = [flat.mean(2), flat.std(2, correction=0), flat.amax(2), (flat > 0).float().mean(2)]
        cells = maps.shape[2] // 4 if maps.shape[2] % 4 == 0 else None
        assert torch.allclose(told[..., :4], torch.stack(moments, 2), rtol=1e-3, atol=1e-3)
        if cells:
            pooled = maps.unfold(2, cells, cells).unfold(3, cells, cells).mean((4, 5)).flatten(2)
            assert torch.allclose(told[..., 4:], pooled, rtol=1e-3, atol=1e-3)


def test_hidden_linear_units_are_nodes(case, tmp_path):
    network, images, others = case("dense")
    graphs = build_graphs(network, images, others, tmp_path)
    assert graphs.layout.kinds["hidden"] == "kernel"
    caught = []
    hook = network.module.hidden.register_forward_hook(lambda _, __, out: caught.append(out))
    network.module(pixels_of(images))
    hook.remove()
    told = torch.stack([graph["hidden"].x for graph in graphs])
    assert told.shape == (7, 16, PARAMETERS + MAPS)
    assert torch.allclose(told[..., PARAMETERS], F.relu(caught[0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "heads"), [("chain", ["head"]), ("TwoHeads", ["head1", "head2", "join"])])
def test_nodes_of_classes_do_not_hold_their_scores(case, tmp_path, name, heads):
    network, images, others = case(name)
    graphs = build_graphs(network, images, others, tmp_path)
    assert [layer for layer, kind in graphs.layout.kinds.items() if kind == "class"] == heads
    for head in heads:
        assert all(torch.equal(graph[head].x, graphs.layout.parameters[head]) for graph in graphs)
    with torch.no_grad():
        scores = network.module(pixels_of(images))
    assert torch.allclose(torch.cat([graph.output for graph in graphs]), scores, atol=1e-5)
    assert torch.equal(torch.cat([graph.prediction for graph in graphs]), scores.argmax(1))
    assert torch.equal(torch.cat([graph.y for graph in graphs]), images.labels)
    assert graphs.layout.classes == 4


def test_gates_are_nodes(case, tmp_path):
    graphs = build_graphs(*case("gated"), tmp_path)
    assert graphs.layout.kinds["gate"] == "join"
    assert {source for source, target in graphs.layout.links if target == "gate"} == {"conv", "excite"}


def test_links_without_a_closed_form_are_told(case, tmp_path):
    graphs = build_graphs(*case("Normalised"), tmp_path)
    assert graphs.unlinked == {"third": "norm (GroupNorm)"}
    assert graphs.layout.links == (("first", "second"), ("third", "head"))
    assert graphs[0]["third"].x.shape == (4, PARAMETERS + MAPS)


def test_a_network_without_any_closed_form_has_no_graphs(case, tmp_path):
    with pytest.raises(InputError, match="gap"):
        build_graphs(*case("OnlyMixed"), tmp_path / "graphs")
    assert not (tmp_path / "graphs").exists()


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_that_was_stopped_goes_on(case, tmp_path):
    inputs, settings = case("padded"), GraphSettings(batch_size=2)
    build_graphs(*inputs, tmp_path / "whole", settings)

    def stop(done, total):
        assert total == 7
        if done == 4:
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        build_graphs(*inputs, folder, settings, progress=stop)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [name for name in sorted(before) if name.startswith("graphs-")] == [
        "graphs-00000.safetensors", "graphs-00001.safetensors",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"graphs-00002\.safetensors"):
        AttributionGraphs(folder)[5]
    time.sleep(0.02)
    build_graphs(*inputs, folder, settings)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


@pytest.mark.long
def test_a_build_that_was_killed_goes_on(tmp_path):
    """The process ends without a word, within the second file."""
    code = """
import os, sys
from pathlib import Path
from secateur import load_model
from secateur.explain.agic import build
from secateur.network.images.load import load_images
from secateur.network.settings import ModelSettings
network = load_model(ModelSettings("digits"))
images = load_images("digits", network.preprocessing).train.sample(6, 0)
save = build.save_file
def half(tensors, path):
    if "graphs-00001" in str(path):
        Path(path).write_bytes(b"half")
        os._exit(9)
    save(tensors, path)
build.save_file = half
build.build_graphs(network, images, images, Path(sys.argv[1]), build.GraphSettings(batch_size=3))
"""
    network = load_model(ModelSettings("digits"))
    images, settings = load_images("digits", network.preprocessing).train.sample(6, 0), GraphSettings(batch_size=3)
    build_graphs(network, images, images, tmp_path / "whole", settings)
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], check=False).returncode == 9
    first = tmp_path / "killed" / "graphs-00000.safetensors"
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "killed" / "graphs-00001.safetensors").exists()
    build_graphs(network, images, images, tmp_path / "killed", settings)
    assert first.stat().st_mtime_ns == written
    found = {name: data for name, data in bytes_of(tmp_path / "killed").items() if not name.startswith(".")}
    assert found == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "change",
    ["network", "images", "labels", "normalisation", "background", "edges", "seed", "batch_size"],
)
def test_a_folder_is_of_one_network_and_its_images(case, tmp_path, change):
    network, images, others = case("chain")
    settings = GraphSettings(background=4)
    build_graphs(network, images, others, tmp_path, settings)
    before = bytes_of(tmp_path)
    if change == "network":
        with torch.no_grad():
            network.module.conv2.weight[0, 0, 0, 0] += 0.1
    elif change == "images":
        images = images.subset(torch.tensor([1, 0, 2, 3, 4, 5, 6]))
    elif change == "labels":
        images = replace(images, labels=images.labels.roll(1))
    elif change == "normalisation":
        images = replace(images, preprocessing=replace(images.preprocessing, mean=(0.1,) * 3))
    elif change == "background":
        others = others.subset(torch.arange(8))
    else:
        settings = replace(settings, **{change: 2})
    with pytest.raises(InputError, match=f"{tmp_path.name} holds attribution graphs of another network"):
        build_graphs(network, images, others, tmp_path, settings)
    assert bytes_of(tmp_path) == before


def test_what_is_left_without_its_listing_is_made_again(case, tmp_path):
    """Somebody removes graphs.json and builds those of another network: no file of the first may count."""
    build_graphs(*case("chain"), tmp_path)
    (tmp_path / "graphs.json").unlink()
    graphs = build_graphs(*case("gated"), tmp_path)
    assert set(graphs[0].node_types) == {"conv", "squeeze", "excite", "gate", "last", "head"}


def test_the_seed_draws_the_background(case, tmp_path):
    inputs = case("chain")
    made = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        build_graphs(*inputs, tmp_path / name, GraphSettings(background=3, seed=seed))
        made[name] = bytes_of(tmp_path / name)
    assert made["one"] == made["same"]
    assert made["one"]["graphs-00000.safetensors"] != made["other"]["graphs-00000.safetensors"]


def test_indices_beyond_sixteen_bits(case, tmp_path):
    network, images, others = case("Wide", 2)
    graphs = build_graphs(network, images, others, tmp_path, GraphSettings(edges=2**15 + 40, batch_size=1))
    assert sorted(path.name for path in tmp_path.glob("graphs-*")) == [
        "graphs-00000.safetensors", "graphs-00001.safetensors",
    ]  # fmt: skip
    edges = graphs[1]["first", FEEDS, "head"].edge_index
    assert edges[0][edges[1] == 2].sort()[0].equal(torch.arange(2**15 + 40))


@pytest.mark.parametrize("name", ["edges", "background", "batch_size"])
def test_settings_are_counts(name):
    with pytest.raises(UsageError, match=f"{name} .* at least 1"):
        GraphSettings(**{name: 0})


def test_what_is_written_says_what_it_is(case, tmp_path):
    build_graphs(*case("padded"), tmp_path, GraphSettings(edges=5))
    about = json.loads((tmp_path / "graphs.json").read_text())
    assert about["settings"] == {"edges": 5, "background": 32, "batch_size": 64, "seed": 0, "permutations": 0}
    assert list(about["nodes"])[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
