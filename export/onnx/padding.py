"""Keep a padding apart from the pooling that reads it: ONNX Runtime joins both, also where that is another result.

Its Pad_Fusion (seen in 1.31) makes the zeros before a MaxPool the pool's own padding, which never is a maximum.
"""

from typing import Any

POOLS = ("MaxPool", "AveragePool")


def keep_padding_apart(model: Any) -> int:
    """Put a Max of one input, which changes nothing, between paddings and the pools that read them, in place.

    Returns:
        The number of paddings.
    """
    import onnx

    found = 0
    for place, node in reversed(list(enumerate(model.graph.node))):
        readers = [reader for reader in model.graph.node if node.op_type == "Pad" and node.output[0] in reader.input]
        if not any(reader.op_type in POOLS for reader in readers):
            continue
        name = f"{node.output[0]}_apart"
        for reader in readers:
            for index, source in enumerate(reader.input):
                if source == node.output[0]:
                    reader.input[index] = name
        model.graph.node.insert(place + 1, onnx.helper.make_node("Max", [node.output[0]], [name], name=f"node_{name}"))
        found += 1
    return found
