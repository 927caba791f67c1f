"""`bench` on classifiers of other makes, and `doctor`."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from secateur.cli.tools.bench import BenchSettings, bench
from secateur.common.errors import InputError
from secateur.common.progress import Observer
from secateur.export.measure import latency
from secateur.export.runtime.classifier import read_classifier

KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(latency, "SECONDS", 0.05)


def classifier(path, *, last=False, batch="n", kind="float32", softmax=False, outputs=1, opset=18, size=8, classes=3):
    """A global average and a linear layer, as others might write it."""
    dtype = np.float16 if kind == "float16" else np.float32
    shape = [batch, size, size, 3] if last else [batch, 3, size, size]
    weights = np.random.default_rng(0).standard_normal((3, classes)).astype(dtype)
    nodes = [helper.make_node("Transpose", ["picture"], ["x"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        helper.make_node("GlobalAveragePool", ["x" if last else "picture"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["scores"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], ["shares"], axis=1))
    names = ["shares" if softmax else "scores", "f"][:outputs]
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info("picture", KINDS[kind], shape)],
        [helper.make_tensor_value_info(name, KINDS[kind], [batch, 3 if name == "f" else classes]) for name in names],
        [helper.make_tensor("w", KINDS[kind], weights.shape, weights.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "other",
    [
        {"last": True},
        {"batch": 4},
        {"kind": "float16"},
        {"softmax": True},
        {"outputs": 2},
        {"opset": 11},
    ],
    ids=str,
)
def test_other_makes_give_the_same_classes(other, tmp_path, noise_images, recorder):
    plain, path = classifier(tmp_path / "plain.onnx"), classifier(tmp_path / "other.onnx", **other)
    images = np.random.default_rng(1).random((4, 3, 8, 8), dtype=np.float32)
    from secateur.export.runtime.session import open_session

    first, second = (read_classifier(one).run(open_session(one).session, images).argmax(1) for one in (plain, path))
    assert np.array_equal(first, second)
    observer = recorder()
    found = bench(plain, path, BenchSettings(provider="cpu"), observer)
    assert [row.batch for row in found.comparisons] == ([4] if "batch" in other else [1, 32])
    told = " ".join(observer.told)
    assert ("channels last" in told) == ("last" in other)
    assert ("'scores' is read, not 'f'" in told) == ("outputs" in other)
    assert all(nodes["cpu"] > 0 for nodes in found.placement)
    json.dumps(found.to_json(), allow_nan=False)
    assert any(row[0] == "  images per second" for row in found.rows())


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        ({}, {"size": 9}, {}, "cannot be compared"),
        ({"batch": 2}, {"batch": 3}, {}, "no batch size works for both"),
        ({"batch": 2}, {}, {"batches": (1,)}, "batches of 2 only"),
        ({}, {}, {"input_shape": (3, 9, 9)}, "got --input-shape 3,9,9"),
        ({"size": "s"}, {"size": "s"}, {}, "leaves its image size open"),
    ],
)
def test_what_cannot_be_compared_is_named(first, second, settings, message, tmp_path):
    one, other = classifier(tmp_path / "one.onnx", **first), classifier(tmp_path / "other.onnx", **second)
    with pytest.raises(InputError, match=message):
        bench(one, other, BenchSettings(provider="cpu", **settings), Observer())


def test_an_open_size_is_taken_from_the_other_file(tmp_path):
    one, other = classifier(tmp_path / "one.onnx", size="s"), classifier(tmp_path / "other.onnx")
    assert bench(one, other, BenchSettings((1,), provider="cpu"), Observer()).comparisons[0].batch == 1
