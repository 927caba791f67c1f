"""All passes over an exported graph, repeated until none of them finds anything more."""

from typing import Any

from .biases import move_into_biases
from .folding import fold_constants
from .graph import Graph, has_inner_graphs
from .idle import remove_idle
from .offsets import offsets_as_norms
from .selections import selections_as_convolutions
from .uniform import replace_uniform_operands

PASSES = (
    fold_constants,
    replace_uniform_operands,
    selections_as_convolutions,
    move_into_biases,
    remove_idle,
)
"""In this order: each makes work for those behind it."""


def clean_graph(model: Any) -> int:
    """Clean a ``ModelProto`` in place. Its outputs change by rounding only; its inputs and outputs keep their names.

    Every constant keeps the element type of what it replaces. Models with inner graphs (``If``, ``Loop``) are left as they are:
    what these read is not analysed.

    Returns:
        The number of changes.
    """
    if has_inner_graphs(model.graph):
        return 0
    graph, changes = Graph(model), 0
    while True:
        found = sum(clean(graph) for clean in PASSES)
        graph.drop_unread()
        if not found:
            break
        changes += found
    changes += offsets_as_norms(graph)
    if changes:
        graph.write()
    return changes
