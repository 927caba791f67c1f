import json
import math
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from secateur.common.files import cache_folder
from secateur.export.measure import point_times
from secateur.export.measure.latency_table import FEW, measure_table, widths_to_measure
from secateur.export.measure.layer_graphs import empty_graph, layer_graph
from secateur.export.measure.point_times import Conditions
from secateur.export.measure.stopwatch import SessionStopwatch
from secateur.export.measure.timed_calls import read_calls
from secateur.export.onnx.model import export_onnx
from secateur.export.runtime.providers import CudaOptions
from secateur.network.channels.follow import find_groups
from secateur.prune.cost import measure_cost

CONDITIONS = Conditions("cpu", 1)


class Reckoned:
    """A stopwatch that reckons: one microsecond a session's call, and a nanosecond a weight."""

    def __init__(self, whole_to_parts=1.0):
        self.asked, self.ratio = 0, whole_to_parts

    def times(self, graphs):
        self.asked += len(graphs)
        return [1e-3 + 1e-6 * self.weights(graph) for graph in graphs]

    def whole_to_parts(self, whole, batch, parts, order):
        self.order = list(order)
        return self.ratio

    @staticmethod
    def weights(graph):
        model = onnx.load_model_from_string(graph)
        return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.name == "w")


@pytest.fixture
def measured(tiny, network_of, tmp_path):
    """Measures a tiny network's table with a stopwatch, into a cache of its own or the one given."""
    known = {}

    def build(name):
        if name not in known:
            network = network_of(tiny(name))
            groups = find_groups(network.module, network.example())
            export_onnx(network, tmp_path / f"{name}.onnx")
            known[name] = network, groups, measure_cost(network)
        return known[name]

    def measure(name, watch, cache="cache", **options):
        table = measure_table(
            *build(name), tmp_path / f"{name}.onnx", CONDITIONS, stopwatch=watch, cache=tmp_path / cache, **options
        )
        return (*build(name), table)

    return measure


def weights_of(network):
    return {n: m.weight.numel() for n, m in network.module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@pytest.mark.parametrize("name", ["chain", "padded", "inverted", "grouped", "dense", "gated"])
def test_the_table_holds_every_layer_that_can_be_cut_at_its_own_widths(measured, name):
    network, groups, costs, table = measured(name, Reckoned())
    touched = {member.layer for group in groups if not group.locked for member in group.members}
    weights = {layer: count for layer, count in weights_of(network).items() if layer in touched}
    assert set(table.layers) == set(weights)
    for layer, count in weights.items():
        shape = costs.layers[layer]
        own = table.layers[layer][0].at(shape.outputs, shape.inputs)
        assert own == pytest.approx(1e-6 * count, rel=1e-4)
    first = costs.layers["conv1" if "conv1" in costs.layers else next(iter(table.layers))]
    half = table.layer_ms(next(iter(table.layers)), first.outputs // 2, first.inputs)
    assert half < table.layer_ms(next(iter(table.layers)), first.outputs, first.inputs)


def test_the_layers_are_brought_to_what_the_whole_takes(measured):
    """Slower than its layers: an offset. Faster: their scale. Both times the sum is the ratio times the series'."""
    for index, ratio in enumerate((1.5, 0.05)):
        watch = Reckoned(ratio)
        network, _, costs, table = measured("chain", watch, cache=f"cache{index}")
        layers = 1e-6 * sum(weights_of(network).values())
        series = layers + 3 * 1e-3
        assert watch.order == [0, 1, 2]
        assert table.offset_ms == pytest.approx(max(0.0, ratio * series - layers), rel=1e-3, abs=1e-9)
        assert replace(costs, times=table).amount("latency") == pytest.approx(ratio * series, rel=1e-3)


def test_what_was_measured_is_kept_and_the_same_table_comes_back(measured, tmp_path):
    first, second = Reckoned(1.2), Reckoned(9.9)
    table = measured("padded", first)[-1]
    assert first.asked > 0
    assert measured("padded", second)[-1].sha256 == table.sha256
    assert second.asked == 0
    finer = Reckoned()
    measured("padded", finer, round_to=2)
    assert 0 < finer.asked < first.asked, "what both alignments share is kept"
    for path in (tmp_path / "cache").glob("*.json"):
        assert json.loads(path.read_text())["key"]["provider"] == "cpu"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', "null"])
def test_damaged_files_are_measured_again_alone(measured, tmp_path, text):
    table = measured("chain", Reckoned())[-1]
    victim = max((tmp_path / "cache").glob("conv-*.json"), key=lambda path: path.stat().st_size)
    points = len(json.loads(victim.read_text())["ms"])
    victim.write_text(text)
    watch = Reckoned()
    assert measured("chain", watch)[-1].sha256 == table.sha256
    assert points < watch.asked <= points + math.ceil(points / 16), "one empty graph with every sixteen"
    assert len(json.loads(victim.read_text())["ms"]) == points


def test_another_batch_or_device_shares_nothing(measured, tmp_path, monkeypatch):
    first = Reckoned()
    measured("chain", first)
    monkeypatch.setattr("secateur.common.environment._processor_name", lambda: "another processor")
    again = Reckoned()
    measured("chain", again)
    assert again.asked == first.asked


def test_other_options_of_a_provider_are_another_measurement(monkeypatch):
    before = {provider: Conditions(provider, 1).about() for provider in ("cuda", "cpu")}
    monkeypatch.setattr(point_times, "CudaOptions", lambda: CudaOptions(channels_last=False))
    assert Conditions("cuda", 1).about() != before["cuda"]
    assert Conditions("cpu", 1).about() == before["cpu"]


def test_widths_that_matter(network_of, shake):
    """Every multiple where they are few; of more, both ends and widths of every alignment."""
    first, second, head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 320, 3), nn.Linear(320, 4)
    module = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    network = network_of(shake(module))
    groups = find_groups(network.module, network.example())
    costs = measure_cost(network)
    widths = widths_to_measure(groups, costs, "auto")
    assert widths["0"] == (tuple(range(4, 33, 4)), (3,))
    assert {size % 32 for size in widths["2"][0]} == {0}
    widths = widths_to_measure(groups, costs, 8)
    wide = widths["2"][0]
    assert (wide[0], wide[-1]) == (8, 320)
    assert {math.gcd(size, 16) for size in wide} == {8, 16}
    assert len(wide) <= FEW
    assert widths["6"] == ((4,), wide)


@pytest.mark.parametrize("name", ["padded", "inverted", "grouped", "dense", "gated"])
def test_a_layer_alone_gives_what_the_layer_gives(tiny, network_of, name):
    """Same places, stride, padding and groups: torch's layer with the graph's weights has the graph's output."""
    network = network_of(tiny(name))
    modules = dict(network.module.named_modules())
    seen = {}
    for layer, calls in read_calls(network).items():
        module, case = modules[layer], calls[0].case
        outputs = module.weight.shape[0]
        inputs = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
        graph = layer_graph(case, outputs, inputs, batch=2)
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_model_from_string(graph).graph.initializer}
        module.weight.data = torch.from_numpy(weights["w"].copy()).reshape(module.weight.shape)
        module.bias = nn.Parameter(torch.from_numpy(weights["b"].copy()))
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        x = torch.randn(session.get_inputs()[0].shape, generator=torch.Generator().manual_seed(0))
        expected = module(x).detach()
        expected = {"": expected, "Relu": expected.relu(), "Relu6": expected.clamp(0, 6)}.get(
            case.activation,
            torch.nn.functional.silu(expected) if case.activation == "Silu" else torch.sigmoid(expected),
        )
        if case.activation == "Tanh":
            expected = module(x).detach().tanh()
        (found,) = session.run(None, {"x": x.numpy()})
        assert np.allclose(found, expected.numpy(), atol=1e-4), (layer, case)
        seen[layer] = case.activation
    expected = {"padded": {"layer1.0.conv1": "Relu", "layer1.0.conv2": ""}, "inverted": {"stem.0": "Relu6"}}
    assert expected.get(name, {}).items() <= seen.items()


def test_a_real_stopwatch_sees_a_hundredfold_of_work(network_of, shake):
    network = network_of(shake(nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 144, 4))))
    case = read_calls(network)["0"][0].case
    watch = SessionStopwatch("cpu")
    nothing, narrow, wide = watch.times([empty_graph(1), layer_graph(case, 8, 8, 1), layer_graph(case, 128, 128, 1)])
    assert 0 < nothing < wide
    assert wide > 5 * narrow


def test_where_measurements_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SECATEUR_CACHE")
    monkeypatch.setattr("secateur.common.files.sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "secateur"
