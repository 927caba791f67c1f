"""The maps of a layer's kernels in a traced network, and the values that replace removed kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..common.errors import InputError
from ..network.graph.execution import Changes, run_graph
from ..network.graph.feature_points import FeaturePoint
from ..network.graph.topology import class_nodes
from ..network.graph.trace import reading_nodes
from ..network.images.images import Images


@dataclass(frozen=True)
class KernelMaps:
    """The maps of a layer's kernels: the nodes that output them, one per call, and the dimension of the kernels."""

    name: str
    nodes: tuple[fx.Node, ...]
    dim: int = 1

    def channels(self, values: Tensor) -> int:
        return values.shape[self.dim]

    def filled(self, values: Tensor, removed: Tensor, fill: Tensor) -> Tensor:
        """``values`` with ``fill``, ``[C]``, in place of the ``removed`` kernels, bool ``[C]`` or ``[rows, C]``."""
        places = [1] * (values.dim() - 2)
        mask = removed.reshape(-1, *places, self.channels(values)).movedim(-1, self.dim)
        other = fill.to(values).reshape(1, *places, -1).movedim(-1, self.dim)
        return torch.where(mask, other, values)

    def changes(self, removed: Tensor, fill: Tensor) -> Changes:
        """The same as changes for ``run_graph``, at every call of the layer."""
        return dict.fromkeys(self.nodes, lambda values: self.filled(values, removed, fill))


def kernel_maps(view: fx.GraphModule) -> dict[str, KernelMaps]:
    """For each convolution and linear layer, its kernels' outputs after their own normalisation and activation.

    Kernels are the last dimension of a linear layer's output, the second of any other.
    """
    return {
        layer: KernelMaps(layer, nodes, -1 if isinstance(view.get_submodule(layer), nn.Linear) else 1)
        for layer, nodes in reading_nodes(view).items()
    }


def point_maps(point: FeaturePoint) -> KernelMaps:
    """The maps of a feature point."""
    return KernelMaps(point.name, (point.node,))


def class_layers(view: fx.GraphModule) -> frozenset[str]:
    """The layers of the head, whose kernels are the classes."""
    return frozenset(str(node.target) for node in class_nodes(view))


def fill_values(
    view: fx.GraphModule, maps: Sequence[KernelMaps], images: Images, fill: str, batch_size: int, device: str
) -> dict[str, Tensor]:
    """The value that replaces each removed kernel, ``[C]`` by name: its ``mean`` over images, calls and positions, or ``zero``.

    Raises:
        ValueError: the fill is unknown.
        InputError: a layer does not output one row per image.
    """
    if fill not in ("mean", "zero"):
        raise ValueError(f"fill must be mean or zero (got {fill!r})")
    if fill == "zero":
        images = images.subset(torch.arange(1))  # only the widths are needed
    nodes = [node for part in maps for node in part.nodes]
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys((part.name for part in maps), 0)
    with torch.no_grad():
        for batch, _ in images.batches(batch_size):
            values = run_graph(view, batch.to(device), nodes)
            for part in maps:
                for node in part.nodes:
                    value = values[node]
                    if len(value) != len(batch):
                        raise InputError(
                            f"{part.name} gives {len(value)} rows for {len(batch)} images, so its kernels cannot be removed "
                            "image by image. Name other layers."
                        )
                    columns = value.movedim(part.dim, -1).flatten(0, -2).double()
                    sums[part.name] = sums.get(part.name, 0) + columns.sum(0)
                    counts[part.name] += len(columns)
    return {name: (total / counts[name] if fill == "mean" else total * 0).float() for name, total in sums.items()}
