"""Two ONNX files compared from the command line."""

from secateur.common.errors import ExitCode
from shell import secateur


def test_bench_needs_to_know_the_normalisation(tmp_path, data):
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 3))],
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    code, _, stderr = secateur("bench", path, path, "--data", data)
    assert code == ExitCode.BAD_INPUT
    assert "--mean" in stderr
    code, _, stderr = secateur("bench", path, path, "--batches", "1")
    assert code == 0, stderr
