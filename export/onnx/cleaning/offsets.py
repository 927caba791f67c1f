"""Constants that stay in the stream between convolutions, as a normalisation.

ONNX Runtime computes a ``BatchNormalization`` in the blocked layout of the convolutions around it, together with the activation
behind it, but not a sum with one constant per channel, for which it reorders the map twice and no longer joins the sums
behind it with their convolutions.
"""

from typing import Any

import numpy as np

from .graph import Graph, is_standard

_BLOCKED = ("Relu", "Clip", "Add", "MaxPool", "AveragePool", "BatchNormalization")
"""Operations that keep the layout of their first input."""
WIDTHS = 8
"""Maps are blocked where their number of channels is a multiple of this, or may be."""


def offsets_as_norms(graph: Graph) -> int:
    """Replace sums of a map behind convolutions with a constant ``[1, C, 1, 1]``; returns how many there were."""
    found = 0
    for node in list(graph.nodes):
        if not is_standard(node, "Add") or not graph.is_float(node.output[0]):
            continue
        for name, other in (tuple(node.input), tuple(node.input)[::-1]):
            constant, shape = graph.array(other), graph.shape(name)
            if constant is None or shape is None or len(shape) != 4 or constant.shape != (1, shape[1], 1, 1):
                continue
            if constant.size % WIDTHS or not _is_behind_convolution(graph, name):
                continue
            parts = {"scale": 1, "bias": constant.ravel(), "mean": 0, "variance": 1}
            names = [
                graph.add_constant(f"{node.output[0]}_{part}", np.full(constant.size, value, constant.dtype))
                for part, value in parts.items()
            ]
            graph.substitute(node, "BatchNormalization", (name, *names), epsilon=0.0)
            found += 1
            break
    return found


def _is_behind_convolution(graph: Graph, name: str) -> bool:
    maker: Any = graph.maker(name)
    while maker is not None and is_standard(maker, *_BLOCKED):
        maker = graph.maker(maker.input[0])
    return maker is not None and is_standard(maker, "Conv")
