"""What a network spends its time on, against what its clean file holds and what torch computes."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.export.measure.layer_graphs import layer_graph, overhead_graph
from secateur.export.measure.timed_calls import Case, read_calls
from secateur.network.channels.follow import find_groups

PLACES = (6, 6)
OPERATIONS = [
    (Case("maxpool", PLACES, (3, 3), (2, 2), (1, 1, 1, 1)), lambda x: F.max_pool2d(x, 3, 2, 1)),
    (Case("averagepool", PLACES, (2, 2), (2, 2), (0, 0, 0, 0)), lambda x: F.avg_pool2d(x, 2)),
    (Case("globalpool", PLACES), lambda x: x.mean((2, 3), keepdim=True)),
    (Case("activation", PLACES, activation="HardSwish"), F.hardswish),
    (Case("activation", PLACES, activation="Silu"), F.silu),
    (Case("activation", PLACES, activation="Relu6"), F.relu6),
    (Case("add", PLACES), lambda x, z: x + z),
    (Case("multiply", PLACES), lambda x, z: x * z),
    (Case("gate", PLACES), lambda x, z: x * z),
    (Case("concat", PLACES), lambda x, z: torch.cat([x, z], 1)),
]


def optimised(graph, tmp_path):
    """The operations that ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node), session


@pytest.mark.parametrize(("case", "expected"), OPERATIONS, ids=lambda value: getattr(value, "kind", ""))
def test_an_operation_alone_gives_what_torch_gives(case, expected):
    session = onnxruntime.InferenceSession(layer_graph(case, 6, 0, 2), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    given = {taken.name: torch.randn(taken.shape, generator=generator) for taken in session.get_inputs()}
    (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    assert np.allclose(found, expected(*given.values()).numpy(), atol=1e-5)


def test_a_join_is_the_sum_of_a_layer_and_a_map_and_runs_within_the_layer(tmp_path):
    case = Case("join", PLACES, activation="Relu")
    operations, session = optimised(layer_graph(case, 32, 0, 2), tmp_path)
    assert operations["Conv"] == 1
    assert not operations["Add"]
    assert not operations["Relu"]
    x = np.random.default_rng(0).standard_normal((2, 32, *PLACES), dtype=np.float32)
    (before,) = onnxruntime.InferenceSession(overhead_graph(case, 32, 2)).run(None, {"x": x})
    assert np.allclose(session.run(None, {"x": x})[0], np.maximum(before + x, 0), atol=1e-5)


@pytest.mark.parametrize("activation", ["", "Relu", "Relu6"])
def test_an_int8_layer_runs_in_int8(activation, tmp_path):
    case = Case("conv", PLACES, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), activation=activation)
    operations, session = optimised(layer_graph(case, 16, 8, 2, "int8"), tmp_path)
    assert operations["QLinearConv"] == 1
    assert operations.keys() <= {"QLinearConv", "Transpose"}, "nothing is left in float32"
    assert session.get_inputs()[0].type == session.get_outputs()[0].type == "tensor(uint8)"


def test_a_float16_layer_takes_and_gives_float16():
    for case in (Case("conv", PLACES, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), Case("linear", ()), Case("join", PLACES)):
        model = onnx.load_model_from_string(layer_graph(case, 8, 8, 2, "fp16"))
        kinds = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
        assert kinds == {onnx.TensorProto.FLOAT16}


class Stem(nn.Module):
    """A stem with a pool, an identity block, a block that narrows, dense maps and a gate."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.narrow, self.short = nn.Conv2d(8, 16, 3, 2, padding=1), nn.Conv2d(8, 16, 1, 2)
        self.more = nn.Conv2d(16, 4, 1)
        self.squeeze, self.head = nn.Conv2d(20, 20, 1), nn.Linear(20, 4)

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.norm(self.stem(images))), 2)
        x = F.relu(x + self.second(F.relu(self.first(x))))
        x = F.relu(self.narrow(x) + self.short(x))
        x = torch.cat([x, self.more(x)], 1)
        x = x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return self.head(x.mean((2, 3)))


def test_every_operation_belongs_to_a_layer(network_of, shake):
    network = network_of(shake(Stem()))
    groups = find_groups(network.module, network.example())
    ends = {member.layer for group in groups if group.ends_branch for member in group.consumers}
    assert ends == {"second", "narrow"} or ends == {"second"}
    kinds = {name: [call.case.kind for call in calls] for name, calls in read_calls(network, ends).items()}
    assert kinds["stem"] == ["conv", "maxpool"]
    assert kinds["first"] == ["conv"]
    assert kinds["second"] == ["conv", "join"], "the sum goes with the branch"
    assert sorted(kinds["narrow"] + kinds["short"]) == sorted(["conv", "conv", "join", "concat", "gate", "globalpool"])
    assert kinds["more"] == ["conv", "concat", "globalpool", "gate"]
    calls = read_calls(network, ends)
    assert calls["second"][0].case.activation == ""
    assert calls["second"][1].case.activation == "Relu"
    assert calls["stem"][0].case.activation == calls["first"][0].case.activation == "Relu"
    shares = {call.share for call in calls["more"][1:]}
    assert shares == {4 / 20}
    assert {call.width for call in calls["more"][1:]} == {20}


def test_a_padded_shortcut_is_the_convolution_of_a_clean_file(tiny, network_of):
    calls = read_calls(network_of(tiny("padded")))
    pads = [call for found in calls.values() for call in found if call.case.kind == "pad"]
    assert pads
    assert all(call.case.groups == 2 and call.case.stride == (2, 2) for call in pads)
