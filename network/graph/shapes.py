"""Which nodes of a traced network read shapes alone."""

from torch import fx

from .reach import needed_for

SHAPE_METHODS = ("size", "dim", "numel", "ndimension")


def depends_on_shapes_alone(node: fx.Node) -> bool:
    """Whether a node depends on tensors only through their shapes."""
    needed = needed_for([node], stop=is_shape)
    return all(is_shape(each) or each.op in ("call_function", "call_method") for each in needed)


def is_shape(node: fx.Node) -> bool:
    """Whether a node reads a tensor's shape only."""
    if node.op == "call_method":
        return node.target in SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")
