"""Raw pixels as the input of an exported file: the normalisation becomes its first nodes."""

from typing import Any

import numpy as np

from ...network.images.pictures import Preprocessing

PREFIX = "pixels_"
"""The names of the nodes start with this, so that a quantiser can leave them out."""


def take_pixels(model: Any, preprocessing: Preprocessing) -> None:
    """Make a model with one float32 input take uint8 pixels ``[batch, C, H, W]`` instead, in place.

    ``(pixel / 255 - mean) / std`` is one scale and one shift per channel. They stay nodes of their own, since the zeros that a
    first convolution pads with are zeros after the normalisation.
    """
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    (taken,) = graph.input
    std, mean = np.array(preprocessing.std, np.float64), np.array(preprocessing.mean, np.float64)
    steps = [("Mul", "scale", 1 / (255 * std)), ("Add", "shift", -mean / std)]
    name = f"{PREFIX}float"
    nodes = [helper.make_node("Cast", [taken.name], [name], f"{PREFIX}cast", to=onnx.TensorProto.FLOAT)]
    for kind, what, values in steps:
        if kind == "Add" and not values.any():
            continue
        constant, before, name = f"{PREFIX}{what}_by_channel", name, f"{PREFIX}{what}d"
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32).reshape(1, -1, 1, 1), constant))
        nodes.append(helper.make_node(kind, [before, constant], [name], f"{PREFIX}{what}"))
    for node in graph.node:
        for index, read in enumerate(node.input):
            if read == taken.name:
                node.input[index] = name
    kept = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(kept)
    taken.type.tensor_type.elem_type = onnx.TensorProto.UINT8
