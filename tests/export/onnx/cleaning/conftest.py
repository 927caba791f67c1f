"""Small graphs from nodes and constants, run by ONNX's reference implementation."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(scope="session")
def graph_of():
    """A checked model of ``images`` [batch, 4, 7, 7] whose nodes are (operation, inputs, output, attributes)."""

    def build(nodes, constants=None, outputs=("y",), kind=TensorProto.FLOAT, opset=20):
        made = [
            helper.make_node(operation, inputs.split(",") if inputs else [], [output], **attributes)
            for operation, inputs, output, attributes in nodes
        ]
        graph = helper.make_graph(
            made,
            "g",
            [helper.make_tensor_value_info("images", kind, ["batch", 4, 7, 7])],
            [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
        return model

    return build


@pytest.fixture(scope="session")
def optimised(tmp_path_factory):
    """The operations of ONNX Runtime's own optimised graph on the CPU, counted."""
    folder = tmp_path_factory.mktemp("optimised")

    def count(model):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)

    return count
