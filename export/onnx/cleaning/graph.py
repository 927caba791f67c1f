"""A graph with who makes and who reads each value, and edits that keep both up to date."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = int | str
"""A number, or the name of a free dimension."""


def has_inner_graphs(graph: Any) -> bool:
    """Whether a node holds a graph of its own, which may read values that no input of the node names."""
    return any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute)


def is_standard(node: Any, *kinds: str) -> bool:
    """Whether a node is one of these operations of the standard set."""
    return node.domain in ("", "ai.onnx") and node.op_type in kinds


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of a node's attribute; strings are bytes."""
    import onnx

    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


class Graph:
    """The nodes, constants and shapes of a ``ModelProto``'s graph. Edits reach the model with :meth:`write`.

    A constant is an initializer that no caller can replace. ``opset``: the version of the standard operators.
    """

    def __init__(self, model: Any) -> None:
        import onnx

        self._graph = graph = model.graph
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        self.nodes: list[Any] = list(graph.node)
        self.inputs = {entry.name for entry in graph.input}
        self.outputs = {entry.name for entry in graph.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._types = {entry.name: entry.type for entry in (*graph.input, *graph.output, *graph.value_info)}
        self._kept = set(self._tensors)
        self._new: list[Any] = []
        self._helper = onnx
        self._makers: dict[str, Any] = {}
        self._readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            self._enter(node)

    # what is there

    def maker(self, name: str) -> Any:
        """The node that makes a value; None for inputs and constants."""
        return self._makers.get(name)

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a value, one entry per reading."""
        return list(self._readers.get(name, ()))

    def only_reader(self, name: str) -> Any:
        """The node that reads a value which nothing else reads, not even the caller; otherwise None."""
        readers = self._readers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def array(self, name: str) -> NDArray[Any] | None:
        """A constant's value; None if the name is not that of a constant."""
        if name not in self._tensors or name in self.inputs:
            return None
        if name not in self._arrays:
            self._arrays[name] = self._helper.numpy_helper.to_array(self._tensors[name])
        return self._arrays[name]

    def shape(self, name: str) -> tuple[Size, ...] | None:
        """A value's shape; None if a size is neither a number nor a named one."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        kind = self._types.get(name)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        sizes: list[Size] = []
        for dim in kind.tensor_type.shape.dim:
            if not (dim.HasField("dim_value") or dim.dim_param):
                return None
            sizes.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param)
        return tuple(sizes)

    def element_type(self, name: str) -> int:
        """A value's element type, as in ``TensorProto.DataType``; 0 if it is not known."""
        if name in self._tensors:
            return int(self._tensors[name].data_type)
        kind = self._types.get(name)
        return int(kind.tensor_type.elem_type) if kind is not None and kind.HasField("tensor_type") else 0

    def is_float(self, name: str) -> bool:
        """Whether a value is of a floating type that numpy knows."""
        types = self._helper.TensorProto
        return self.element_type(name) in (types.FLOAT16, types.FLOAT, types.DOUBLE)

    # edits

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        """A new constant, under this name or, if it is taken, the name with a number; returns the name."""
        wanted, count = name, 1
        while name in self._tensors or name in self._makers or name in self.inputs:
            count += 1
            name = f"{wanted}_{count}"
        self._tensors[name] = self._helper.numpy_helper.from_array(np.ascontiguousarray(value), name)
        self._new.append(self._tensors[name])
        return name

    def reread(self, node: Any, index: int, name: str) -> None:
        """Let a node read another value at one of its inputs."""
        self._forget(node.input[index], node)
        node.input[index] = name
        self._readers[name].append(node)

    def append_input(self, node: Any, name: str) -> None:
        """Let a node read one value more."""
        node.input.append(name)
        self._readers[name].append(node)

    def make_constant(self, node: Any, values: Sequence[NDArray[Any]]) -> None:
        """Replace a node by constants of its outputs' names."""
        self._leave(node)
        for name, value in zip(node.output, values, strict=True):
            if name:
                self.add_constant(name, value)

    def substitute(self, node: Any, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Replace a node with one output by another that makes the same value."""
        new = self._helper.helper.make_node(
            kind, list(inputs), list(node.output), name=f"node_{node.output[0]}", **attributes
        )
        place = self._place(node)
        self._leave(node)
        self.nodes.insert(place, new)
        self._enter(new)

    def bypass(self, node: Any, source: str) -> bool:
        """Remove a node whose only used output equals ``source``, for all its readers; False if that is not possible.

        If the value is one of the graph's outputs, what makes ``source`` makes it under the output's name.
        """
        name = node.output[0]
        if name in self.outputs:
            maker = self._makers.get(source)
            if maker is None or source in self.outputs:
                return False
            self._leave(node)
            maker.output[list(maker.output).index(source)] = name
            self._makers[name] = self._makers.pop(source)
            old, new = source, name
        else:
            self._leave(node)
            old, new = name, source
        for reader in self.readers(old):
            for index, read in enumerate(reader.input):
                if read == old:
                    self.reread(reader, index, new)
        return True

    def drop_unread(self) -> None:
        """Remove the nodes whose outputs nothing reads."""
        for node in reversed(list(self.nodes)):
            if not any(self._readers.get(name) or name in self.outputs for name in node.output if name):
                self._leave(node)

    def write(self) -> None:
        """Write nodes, constants and shapes back to the model, without constants that nothing reads."""
        graph, nodes = self._graph, list(self.nodes)
        del graph.node[:]
        graph.node.extend(nodes)
        read = {name for name, readers in self._readers.items() if readers} | self.outputs
        _keep(graph.initializer, [*graph.initializer, *self._new], read | self.inputs)
        constants = {tensor.name for tensor in graph.initializer}
        _keep(graph.value_info, list(graph.value_info), (set(self._makers) | (constants & self._kept)) - self.outputs)

    def _place(self, node: Any) -> int:
        return next(index for index, other in enumerate(self.nodes) if other is node)

    def _enter(self, node: Any) -> None:
        for name in node.output:
            self._makers[name] = node
        for name in node.input:
            self._readers[name].append(node)

    def _leave(self, node: Any) -> None:
        del self.nodes[self._place(node)]
        for name in node.output:
            self._makers.pop(name, None)
        for name in node.input:
            self._forget(name, node)

    def _forget(self, name: str, reader: Any) -> None:
        readers = self._readers[name]
        del readers[next(index for index, other in enumerate(readers) if other is reader)]


def _keep(field: Any, entries: Iterable[Any], names: set[str]) -> None:
    kept = [entry for entry in entries if entry.name in names]
    del field[:]
    field.extend(kept)
