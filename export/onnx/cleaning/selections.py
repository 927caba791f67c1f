"""Shortcuts that pick positions and channels and pad channels with zeros become strided 1x1 convolutions.

ONNX Runtime keeps maps in a blocked layout between convolutions, poolings and sums, and reorders them before and after a
``Slice``, ``Pad`` or ``Gather``. A weight of 0 and 1 gives exactly the values of these, as long as they are finite.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, attribute, is_standard
from .uniform import uniform_values

_MOVES = ("Slice", "Pad", "Gather", "Mul", "Concat")


@dataclass(frozen=True)
class _Selection:
    """A map ``[n, C, h, w]`` as positions and channels of ``source``: every ``stride``-th position, from the first, and for
    each channel its place in ``channels``, or -1 for zeros."""

    source: str
    channels: NDArray[np.int64]
    stride: tuple[int, int] = (1, 1)

    @property
    def pads(self) -> bool:
        """Whether some channels are zeros."""
        return bool((self.channels < 0).any())


def selections_as_convolutions(graph: Graph) -> int:
    """Replace chains of operations that end in padded channels; returns how many there were."""
    found: dict[str, _Selection] = {}
    zeros = {name for name, value in uniform_values(graph).items() if not value.any()}
    for node in list(graph.nodes):
        if is_standard(node, *_MOVES) and graph.is_float(node.output[0]):
            names = [name for name in node.input if name and graph.array(name) is None and name not in zeros]
            start = _start(graph, names[0], found) if len(names) == 1 else None
            selection = _selected(graph, node, start, names[0]) if start is not None else None
            if selection is not None:
                found[node.output[0]] = selection
    count = 0
    for node in list(graph.nodes):
        name = node.output[0]
        if name not in found or _goes_on(graph, name, found) or not found[name].pads:
            continue
        _replace(graph, node, found[name])
        count += 1
    return count


def _goes_on(graph: Graph, name: str, found: dict[str, _Selection]) -> bool:
    reader = _only_reader(graph, name)
    return reader is not None and reader.output[0] in found


def _only_reader(graph: Graph, name: str) -> Any:
    """The node that reads a value's elements; its shape may be read too, since zeros of that shape go with the selection."""
    readers = [reader for reader in graph.readers(name) if not is_standard(reader, "Shape")]
    return readers[0] if len(readers) == 1 and name not in graph.outputs else None


def _start(graph: Graph, name: str, found: dict[str, _Selection]) -> _Selection | None:
    """A value as a selection: of the source that its maker reads, if only one node reads the value itself."""
    if name in found and _only_reader(graph, name) is not None:
        return found[name]
    shape = graph.shape(name)
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        return None
    return _Selection(name, np.arange(shape[1]))


def _selected(graph: Graph, node: Any, start: _Selection, name: str) -> _Selection | None:
    if node.op_type == "Slice":
        return _sliced(graph, node, start)
    if node.op_type == "Pad":
        return _padded(graph, node, start)
    if node.op_type == "Gather":
        index = graph.array(node.input[1])
        if index is None or index.ndim != 1 or attribute(node, "axis", 0) not in (1, -3):
            return None
        return replace(start, channels=start.channels[index])
    if node.op_type == "Concat":
        return _joined(graph, node, start, name)
    return _masked(graph, node, start)


def _sliced(graph: Graph, node: Any, start: _Selection) -> _Selection | None:
    parts = [graph.array(name) for name in node.input[1:]]
    if len(parts) != 4 or any(part is None for part in parts):
        return None
    sizes = graph.shape(node.input[0])
    rows = np.stack(parts, axis=1).tolist()  # type: ignore[arg-type]
    channels, stride = start.channels, list(start.stride)
    for first, end, axis, step in rows:
        axis %= 4
        if step < 1 or axis == 0:
            return None
        if axis == 1:
            channels = channels[first:end:step]
            continue
        size = sizes[axis] if sizes is not None else None
        if first != 0 or end < (size if isinstance(size, int) else 2**31 - 1):
            return None
        stride[axis - 2] *= step
    return replace(start, channels=channels, stride=(stride[0], stride[1]))


def _padded(graph: Graph, node: Any, start: _Selection) -> _Selection | None:
    pads = graph.array(node.input[1])
    value = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    axes = graph.array(node.input[3]) if len(node.input) > 3 and node.input[3] else np.arange(4)
    if pads is None or value is None or axes is None or attribute(node, "mode", b"constant") != b"constant":
        return None
    if value.any() or (pads < 0).any():
        return None
    before, after = (dict(zip((axes % 4).tolist(), part, strict=True)) for part in np.split(pads, 2))
    if any(before.get(axis, 0) or after.get(axis, 0) for axis in (0, 2, 3)):
        return None
    return replace(start, channels=np.pad(start.channels, (before.get(1, 0), after.get(1, 0)), constant_values=-1))


def _joined(graph: Graph, node: Any, start: _Selection, name: str) -> _Selection | None:
    """Joined with channels of zeros, before or after."""
    sizes = [shape[1] if (shape := graph.shape(part)) is not None and len(shape) == 4 else None for part in node.input]
    if attribute(node, "axis") not in (1, -3) or not all(isinstance(size, int) for size in sizes):
        return None
    if any(value is not None and value.any() for value in map(graph.array, node.input)):
        return None
    parts = [
        start.channels if part == name else np.full(size, -1, np.int64)  # type: ignore[arg-type]
        for part, size in zip(node.input, sizes, strict=True)
    ]
    return replace(start, channels=np.concatenate(parts))


def _masked(graph: Graph, node: Any, start: _Selection) -> _Selection | None:
    """Channels multiplied by 0 or 1."""
    mask = next((array for array in map(graph.array, node.input) if array is not None), None)
    if mask is None or not np.isin(mask, (0, 1)).all():
        return None
    shape = [1] * (4 - mask.ndim) + list(mask.shape)
    if len(shape) != 4 or shape != [1, len(start.channels), 1, 1]:
        return None
    return replace(start, channels=np.where(mask.ravel() == 1, start.channels, -1))


def _replace(graph: Graph, node: Any, selection: _Selection) -> None:
    import onnx

    name = node.output[0]
    sizes = graph.shape(selection.source)
    assert sizes is not None
    kind = onnx.helper.tensor_dtype_to_np_dtype(graph.element_type(name))
    weight = np.zeros((len(selection.channels), int(sizes[1]), 1, 1), kind)
    outputs = np.flatnonzero(selection.channels >= 0)
    weight[outputs, selection.channels[outputs]] = 1
    inputs = (
        selection.source,
        graph.add_constant(f"{name}_weight", weight),
        graph.add_constant(f"{name}_bias", np.zeros(len(weight), kind)),
    )
    graph.substitute(node, "Conv", inputs, kernel_shape=[1, 1], strides=list(selection.stride))
