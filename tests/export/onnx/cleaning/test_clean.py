"""Each pass on a graph made for it: what is left, and that ONNX's reference implementation gives the same values."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from secateur.export.onnx.cleaning.clean import clean_graph

SEED = np.random.default_rng(0)
W, W5 = SEED.normal(size=(4, 4, 3, 3)).astype("f4"), SEED.normal(size=(5, 4, 1, 1)).astype("f4")
B, C, M = (SEED.normal(size=4).astype("f4") for _ in range(3))
V = SEED.uniform(0.5, 1.5, 4).astype("f4")
C4, G = C.reshape(1, 4, 1, 1), SEED.normal(size=(4, 6)).astype("f4")
ENDS = np.array([2**63 - 1] * 2)
NORM = {"scale": V, "shift": B, "mean": M, "variance": V}
PLACES = {"first": np.array([0, 0]), "ends": ENDS, "axes": np.array([2, 3]), "steps": np.array([2, 2])}
SHORTCUT = [("Slice", "images,first,ends,axes,steps", "s", {})]
SAME = {"pads": [1, 1, 1, 1]}
SIZE = [("Shape", "images", "size", {})]


def joined(*nodes):
    """Nodes, then a sum with a convolution of the images."""
    return [*nodes, ("Conv", "images,w", "c", {**SAME, "strides": [1, 1]}), ("Add", "c,last", "y", {})]


def same(model, cleaned):
    shape, kind = (3, 4, 7, 7), helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    images = np.random.default_rng(1).normal(size=shape).astype(kind)
    wanted, found = (ReferenceEvaluator(proto).run(None, {"images": images}) for proto in (model, cleaned))
    for one, other in zip(wanted, found, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        bound = {np.dtype("f2"): 2e-3, np.dtype("f4"): 1e-6, np.dtype("f8"): 1e-14}[one.dtype]
        assert np.abs(one - other).max() <= bound * np.abs(one).max()


def check(model, left):
    cleaned = onnx.ModelProto()
    cleaned.CopyFrom(model)
    changes = clean_graph(cleaned)
    onnx.checker.check_model(cleaned, full_check=True)
    assert [node.op_type for node in cleaned.graph.node] == left.split()
    assert [entry.name for entry in cleaned.graph.output] == [entry.name for entry in model.graph.output]
    made = {name for node in cleaned.graph.node for name in node.output}
    constants = {tensor.name for tensor in cleaned.graph.initializer}
    assert constants == {name for node in cleaned.graph.node for name in node.input if name} & constants
    assert {entry.name for entry in cleaned.graph.value_info} <= made | constants
    same(model, cleaned)
    assert bool(changes) == (model.SerializeToString() != cleaned.SerializeToString())
    return cleaned


SELECTIONS = {
    "places, then channels": (
        joined(*SHORTCUT, ("Pad", "s,pads", "p", {}), ("Conv", "p,big", "last", {"strides": [1, 1]}))[:3],
        {**PLACES, "pads": np.array([0, 1, 0, 0, 0, 2, 0, 0]), "big": SEED.normal(size=(4, 7, 1, 1)).astype("f4")},
        "Conv Conv",
        "last",
    ),
    "by axes, negative too": (
        [*SHORTCUT, ("Pad", "s,pads,,where", "y", {})],
        {**PLACES, "pads": np.array([2, 0]), "where": np.array([-3])}, "Conv", "y",
    ),
    "picked and masked, as after a cut": (
        [*SHORTCUT, ("Gather", "s,index", "g", {"axis": 1}), ("Mul", "g,mask", "m", {}), ("Add", "m,fill", "y", {})],
        {**PLACES, "index": np.array([0, 0, 3, 1, 0]), "mask": np.array([0, 1, 1, 1, 0], "f4").reshape(1, 5, 1, 1),
         "fill": np.array([2, 0, 0, 0, 3], "f4").reshape(1, 5, 1, 1)}, "Conv", "y",
    ),
    "joined with zeros": (
        [*SHORTCUT, ("Shape", "s", "size", {}), ("Expand", "zero,size", "z", {}), ("Concat", "z,s,z", "y", {"axis": 1})],
        {**PLACES, "zero": np.zeros((1, 1, 1, 1), "f4")}, "Conv", "y",
    ),
    "a part of the channels": (
        [("Slice", "images,one,three,channels,one", "s", {}), ("Pad", "s,pads", "y", {})],
        {"one": np.array([1]), "three": np.array([3]), "channels": np.array([1]), "pads": np.array([0, 0, 0, 0, 0, 2, 0, 0])},
        "Conv", "y",
    ),
    "every second place alone": ([("Slice", "images,first,ends,axes,steps", "y", {})], PLACES, "Slice", "y"),
    "not from the first place": (
        [*SHORTCUT, ("Pad", "s,pads", "y", {})],
        {**PLACES, "first": np.array([1, 0]), "pads": np.array([0, 1, 0, 0, 0, 2, 0, 0])}, "Slice Conv", "y",
    ),
    "places are padded too": (
        [*SHORTCUT, ("Pad", "s,pads", "y", {})],
        {**PLACES, "pads": np.array([0, 1, 1, 0, 0, 2, 0, 0])}, "Slice Pad", "y",
    ),
    "padded with ones": (
        [*SHORTCUT, ("Pad", "s,pads,one", "y", {})],
        {**PLACES, "pads": np.array([0, 1, 0, 0, 0, 2, 0, 0]), "one": np.array(1, "f4")}, "Slice Pad", "y",
    ),
    "padded by reflection": (
        [*SHORTCUT, ("Pad", "s,pads", "y", {"mode": "reflect"})],
        {**PLACES, "pads": np.array([0, 1, 0, 0, 0, 2, 0, 0])}, "Slice Pad", "y",
    ),
    "places that another reads": (
        [*SHORTCUT, ("Pad", "s,pads", "p", {}), ("Relu", "s", "r", {}), ("Concat", "p,r", "y", {"axis": 1})],
        {**PLACES, "pads": np.array([0, 1, 0, 0, 0, 2, 0, 0])}, "Slice Conv Relu Concat", "y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections(graph_of, name):
    nodes, constants, left, output = SELECTIONS[name]
    check(graph_of(nodes, constants, (output,)), left)


CONSTANTS = {
    "constants of constants": (
        [("Identity", "c", "i", {}), ("Reshape", "i,four", "r", {}), ("Sqrt", "v", "q", {}), ("Reshape", "q,four", "u", {}),
         ("Concat", "r,u", "k", {"axis": 1}), ("Mul", "k,k", "m", {}), ("Concat", "images,images", "two", {"axis": 1}),
         ("Add", "two,m", "y", {})],
        {"c": C, "v": V, "four": np.array([1, 4, 1, 1])}, "Concat Add",
    ),
    "a constant node": (
        [("Constant", "", "c", {"value": onnx.numpy_helper.from_array(C4)}), ("Mul", "images,c", "y", {})], {}, "Mul",
    ),
    "one branch for two sums": (
        joined(*SIZE, ("Expand", "c4,size", "e", {}), ("Add", "images,e", "f", {}), ("Relu", "f", "r", {}),
               ("Add", "r,e", "last", {})),
        {"c4": C4, "w": W}, "Add Relu Add Conv Add",
    ),
    "through a norm that two read, and an activation": (
        [*SIZE, ("Expand", "c4,size", "e", {}), ("BatchNormalization", "e,scale,shift,mean,variance", "n", {}),
         ("Relu", "n", "r", {}), ("Add", "images,n", "f", {}), ("Mul", "f,r", "y", {})],
        {"c4": C4, **NORM}, "Add Mul",
    ),
    "one number everywhere": (
        [*SIZE, ("ConstantOfShape", "size", "e", {"value": helper.make_tensor("v", TensorProto.FLOAT, [1], [2.5])}),
         ("Sub", "images,e", "y", {})],
        {}, "Sub",
    ),
    "the map of what is added is smaller": (
        [("Concat", "batch,four,seven,seven", "size", {"axis": 0}), ("Expand", "c4,size", "e", {}),
         ("GlobalAveragePool", "images", "g", {}), ("Add", "g,e", "y", {})],
        {"c4": C4, "batch": np.array([1]), "four": np.array([4]), "seven": np.array([7])}, "GlobalAveragePool Add",
    ),
    "a growing constant stays": (
        [("Expand", "c4,size", "e", {}), ("Slice", "e,zero,one,two,one", "s", {}), ("Relu", "images", "r", {}),
         ("Add", "r,s", "y", {})],
        {"c4": C4, "size": np.array([1, 4, 40_000, 7]), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2])},
        "Expand Slice Relu Add",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(graph_of, name):
    nodes, constants, left = CONSTANTS[name]
    check(graph_of(nodes, constants), left)


CONV = ("Conv", "images,w", "c", SAME)
BIASES = {
    "none before": ([CONV, ("Add", "c,c4", "y", {})], "Conv"),
    "a bias before, from the left": ([("Conv", "images,w,b", "c", SAME), ("Add", "c4,c", "y", {})], "Conv"),
    "one number": ([CONV, ("Add", "c,half", "y", {})], "Conv"),
    "through a sum": (
        [CONV, ("Relu", "images", "r", {}), ("Add", "r,c", "s", {}), ("Add", "s,c4", "y", {})], "Conv Relu Add",
    ),
    "through a pooling": (
        [CONV, ("MaxPool", "c", "m", {"kernel_shape": [2, 2]}), ("Add", "m,c4", "y", {})], "Conv MaxPool",
    ),
    "a norm's": (
        [("Relu", "images", "r", {}), ("BatchNormalization", "r,scale,shift,mean,variance", "n", {}), ("Add", "n,c4", "y", {})],
        "Relu BatchNormalization",
    ),
    "two constants": ([("Relu", "images", "r", {}), ("Add", "r,c4", "s", {}), ("Add", "half,s", "y", {})], "Relu Add"),
    "transposed": ([("ConvTranspose", "images,w", "c", SAME), ("Add", "c,c4", "y", {})], "ConvTranspose"),
    "linear": (
        [("GlobalAveragePool", "images", "g", {}), ("Flatten", "g", "f", {}), ("Gemm", "f,g46", "l", {}),
         ("Add", "l,g6", "y", {})],
        "GlobalAveragePool Flatten Gemm",
    ),
    "linear, its bias scaled": (
        [("GlobalAveragePool", "images", "g", {}), ("Flatten", "g", "f", {}), ("Gemm", "f,g46,g6", "l", {"beta": 2.0}),
         ("Add", "l,g6", "y", {})],
        "GlobalAveragePool Flatten Gemm Add",
    ),
    "one for each place": ([CONV, ("Add", "c,places", "y", {})], "Conv Add"),
    "what another reads": (
        [CONV, ("Add", "c,c4", "s", {}), ("Relu", "c", "r", {}), ("Mul", "s,r", "y", {})], "Conv Add Relu Mul",
    ),
    "of a larger map": (
        [CONV, ("GlobalAveragePool", "c", "g", {}), ("Add", "g,places", "y", {})], "Conv GlobalAveragePool Add",
    ),
}  # fmt: skip
VALUES = {"w": W, "b": B, "c4": C4, "half": np.array(0.5, "f4"), "g46": G, "g6": G[0], "places": G[0, 0] * W[0, 0, 0, 0]
          + np.arange(49, dtype="f4").reshape(1, 1, 7, 7), **NORM}  # fmt: skip


def used(nodes):
    """The constants that some nodes read."""
    return {name: value for name, value in VALUES.items() if any(name in node[1].split(",") for node in nodes)}


@pytest.mark.parametrize("name", BIASES)
def test_biases(graph_of, name):
    nodes, left = BIASES[name]
    check(graph_of(nodes, used(nodes)), left)


@pytest.mark.parametrize("output", ["c", "y"])
def test_what_the_caller_reads_keeps_its_value(graph_of, output):
    nodes = [CONV, ("Add", "c,c4", "y", {})]
    check(graph_of(nodes, used(nodes), ("c", "y")[:: 1 if output == "c" else -1]), "Conv Add")


LIMITS = {
    "low": np.array(0, "f4"),
    "high": np.array(6, "f4"),
    "higher": np.array(7, "f4"),
    "nothing": np.zeros((1, 4, 1, 1), "f4"),
    "ones": np.ones((1, 4, 1, 1), "f4"),
    "wide": np.zeros((1, 4, 7, 70), "f4"),
}
RELU, CLIP = ("Relu", "images", "a", {}), ("Clip", "images,low,high", "a", {})
POOL = {"kernel_shape": [2, 2]}
IDLE = {
    "activated twice": ([RELU, ("Relu", "a", "y", {})], "Relu"),
    "through pooling and slicing": (
        [RELU, ("MaxPool", "a", "m", POOL), ("Slice", "m,l,h,x,x", "s", {}), ("Relu", "s", "r", {}), ("Neg", "r", "y", {})],
        "Relu MaxPool Slice Neg",
    ),
    "of averages": (
        [RELU, ("AveragePool", "a", "m", POOL), ("Relu", "m", "r", {}), ("Neg", "r", "y", {})], "Relu AveragePool Neg",
    ),
    "clipped twice": ([CLIP, ("Clip", "a,low,high", "c", {}), ("Neg", "c", "y", {})], "Clip Neg"),
    "clipped wider": ([CLIP, ("Clip", "a,low,higher", "c", {}), ("Neg", "c", "y", {})], "Clip Neg"),
    "clipped closer": ([("Clip", "images,low,higher", "a", {}), ("Clip", "a,low,high", "y", {})], "Clip Clip"),
    "clipped above only": ([RELU, ("Clip", "a,,high", "c", {}), ("Relu", "c", "y", {})], "Relu Clip"),
    "an activation behind a negation": ([RELU, ("Neg", "a", "n", {}), ("Relu", "n", "y", {})], "Relu Neg Relu"),
    "zeros": ([RELU, ("Add", "nothing,a", "s", {}), ("Sub", "s,nothing", "t", {}), ("Relu", "t", "y", {})], "Relu"),
    "ones": ([RELU, ("Mul", "ones,a", "s", {}), ("Div", "s,ones", "t", {}), ("Neg", "t", "y", {})], "Relu Neg"),
    "zero minus": ([RELU, ("Sub", "nothing,a", "y", {})], "Relu Sub"),
    "zeros that broadcast": (
        [("GlobalAveragePool", "images", "g", {}), ("Add", "g,wide", "y", {})], "GlobalAveragePool Add",
    ),
    "identities": ([("Identity", "images", "i", {}), ("Relu", "i", "r", {}), ("Identity", "r", "y", {})], "Relu"),
    "an output that is the input": ([("Identity", "images", "y", {})], "Identity"),
    "rounded twice": ([("Floor", "images", "f", {}), ("Floor", "f", "g", {}), ("Ceil", "g", "y", {})], "Floor Ceil"),
}  # fmt: skip


@pytest.mark.parametrize("name", IDLE)
def test_idle(graph_of, name):
    nodes, left = IDLE[name]
    slicing = {"l": np.array([1]), "h": np.array([4]), "x": np.array([2])}
    read = {name for node in nodes for name in node[1].split(",")}
    check(graph_of(nodes, {key: value for key, value in {**LIMITS, **slicing}.items() if key in read}), left)


def test_an_output_keeps_its_own_activation_when_the_value_before_is_an_output_too(graph_of):
    check(graph_of([RELU, ("Relu", "a", "y", {})], {}, ("a", "y")), "Relu Relu")


@pytest.mark.parametrize(("kind", "number"), [(TensorProto.FLOAT16, "f2"), (TensorProto.DOUBLE, "f8")])
def test_constants_keep_the_element_type(graph_of, kind, number):
    nodes = [*SIZE, *SHORTCUT, ("Pad", "s,pads", "p", {}), ("Conv", "images,w", "c", {**SAME, "strides": [2, 2]}),
             ("Expand", "c4,size", "e", {}), ("Add", "images,e", "i", {}), ("Relu", "i", "r", {}),
             ("Conv", "r,w", "d", {**SAME, "strides": [2, 2]}), ("Add", "c,d", "s2", {}), ("Add", "s2,c4", "s3", {}),
             ("Concat", "s3,p", "y", {"axis": 1})]  # fmt: skip
    constants = {**PLACES, "pads": np.array([0, 1, 0, 0, 0, 2, 0, 0]), "w": W.astype(number), "c4": C4.astype(number)}
    cleaned = check(graph_of(nodes, constants, kind=kind), "Conv Conv Add Relu Conv Add Concat")
    floats = {tensor.data_type for tensor in cleaned.graph.initializer if len(tensor.dims) == 4}
    assert floats == {kind}


def test_graphs_with_inner_graphs_are_left_alone(graph_of):
    inner = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["out"])],
        "inner",
        [],
        [helper.make_value_info("out", onnx.TypeProto())],
    )
    nodes = [("Identity", "yes", "which", {}), ("If", "which", "i", {"then_branch": inner, "else_branch": inner}),
             ("Relu", "i", "r", {}), ("Relu", "r", "y", {})]  # fmt: skip
    check(graph_of(nodes, {"yes": np.array(True)}), "Identity If Relu Relu")


def test_a_constant_that_a_caller_may_replace_is_none(graph_of):
    nodes = [CONV, ("Add", "c,c4", "y", {})]
    model = graph_of(nodes, used(nodes))
    model.graph.input.append(helper.make_tensor_value_info("c4", TensorProto.FLOAT, [1, 4, 1, 1]))
    assert clean_graph(model) == 0


def test_a_constant_in_the_stream_becomes_a_norm(graph_of, optimised):
    """Where the maps are as wide as the blocks, and behind convolutions; then there is nothing to reorder in between."""
    w8, w88 = SEED.normal(size=(16, 4, 3, 3)).astype("f4"), SEED.normal(size=(16, 16, 3, 3)).astype("f4")
    constants = {"a": w8, "b": w88, "c": SEED.normal(size=(1, 16, 1, 1)).astype("f4")}
    nodes = [("Conv", "images,a", "f", SAME), ("Relu", "f", "r", {}), ("Add", "r,c", "s", {}), ("Relu", "s", "t", {}),
             ("Conv", "t,b", "u", SAME), ("Add", "t,u", "v", {}), ("Relu", "v", "y", {})]  # fmt: skip
    model = graph_of(nodes, constants)
    cleaned = check(model, "Conv Relu BatchNormalization Relu Conv Add Relu")
    before, after = optimised(model), optimised(cleaned)
    assert before["ReorderInput"] + before["ReorderOutput"] > 1
    assert after == {"Conv": 3, "ReorderOutput": 1}
