"""Attribution graphs (At-GCs): one graph per image, of a network's kernels and the Shapley values between them.

Zheng et al., "AGIC: Attribution Graph-based Interpretable method for CNNs", Neural Networks 179, 2024: kernels are nodes, SHAP
values between kernel outputs are edges, and a node holds its kernel's parameters and its feature map on the image. The full
text is not public; this is a reconstruction from the abstract, and what it leaves open is secateur's choice: nodes are the
channels of every site of the network (layers, joins and the classes, without their scores, which would reveal the class), and
edges are the strongest incoming Shapley values of each node as shares of the sum of their absolute values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...common.errors import InputError
from ...common.files import read_json
from .layout import FED_BY, FEEDS, LABEL, OUTPUT, PREDICTION, GraphLayout, empty_graph

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData


ABOUT, PARAMETERS = "graphs.json", "parameters.safetensors"
"""The files with what all graphs of a folder have in common."""

_PARTS = ("players", "weights", "kept", "size")


@dataclass(frozen=True)
class IncomingEdges:
    """The edges into one node type, ``[images, nodes, k]``.

    For each edge, its source (channels of ``sources`` counted one after the other) and its weight (the signed share of the sum
    of all absolute values); for each node, ``[images, nodes]``, the total share of its k edges and the sum itself."""

    sources: tuple[str, ...]
    players: Tensor
    weights: Tensor
    kept: Tensor
    size: Tensor


class AttributionGraphs(Sequence["HeteroData"]):
    """The graphs of some images, read from their folder on access; a data set for torch-geometric's loader.

    ``layout`` is what they have in common. ``unlinked`` maps node types whose incoming links have no closed form, and are
    therefore not in the graphs, to the operation that mixes channels. ``explainers`` names, for node types with incoming edges,
    their origin: the closed form, or an estimate with its background.

    Raises:
        InputError: the folder holds no graphs, or they are damaged.
    """

    def __init__(self, folder: Path) -> None:
        about, parameters = read_json(folder / ABOUT), _read(folder / PARAMETERS)
        try:
            self.folder, self._batch, self._count = folder, about["settings"]["batch_size"], about["images"]
            self.unlinked: dict[str, str] = about["unlinked"]
            self.explainers: dict[str, str] = about["explainers"]
            self._sources: dict[str, list[str]] = about["sources"]
            self.layout = GraphLayout(
                about["nodes"],
                about["kinds"],
                {name: parameters[name] for name in about["nodes"]},
                tuple((source, target) for target, sources in self._sources.items() for source in sources),
                about["classes"],
            )
        except KeyError as error:
            raise InputError(
                f"{folder / ABOUT} lists no attribution graphs ({error} is missing). Remove the folder and build them again."
            ) from error
        self._shards: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, index: int) -> "HeteroData":  # type: ignore[override]
        """The graph of one image.

        Raises:
            IndexError: the index is out of range.
            InputError: its file is missing or damaged.
        """
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} graphs, numbered from 0 (got {index})")
        number, row = divmod(index % len(self), self._batch)
        if number not in self._shards:
            self._shards[number] = _read(self.folder / shard_name(number))
        shard = self._shards[number]
        graph = empty_graph()
        for name in self.layout.nodes:
            own = self.layout.parameters[name]
            maps = shard.get(f"map/{name}")
            graph[name].x = own if maps is None else torch.cat([own, maps[row].float()], 1)
        for target, sources in self._sources.items():
            players, weights = shard[f"players/{target}"][row].long(), shard[f"weights/{target}"][row].float()
            reader = torch.arange(len(players)).repeat_interleave(players.shape[1])
            for source, edges, weight in self._by_source(sources, torch.stack([players.flatten(), reader]), weights):
                graph[source, FEEDS, target].edge_index = edges
                graph[source, FEEDS, target].edge_weight = weight
                graph[target, FED_BY, source].edge_index = edges.flip(0)
                graph[target, FED_BY, source].edge_weight = weight
        for name in (LABEL, PREDICTION):
            graph[name] = shard[name][row : row + 1]
        graph[OUTPUT] = shard[OUTPUT][row : row + 1]
        return graph

    def kept(self, target: str) -> Tensor:
        """The share of the incoming absolute Shapley values that each node's edges account for, ``[images, nodes]``."""
        return torch.cat([shard[f"kept/{target}"].float() for shard in self._all()])

    def edges(self) -> dict[str, "IncomingEdges"]:
        """The incoming edges of every node of all graphs by node type, as they are stored."""
        shards = list(self._all())

        def whole(name: str) -> Tensor:
            return torch.cat([shard[name] for shard in shards])

        return {
            target: IncomingEdges(tuple(sources), *(whole(f"{part}/{target}") for part in _PARTS))
            for target, sources in self._sources.items()
        }

    def class_values(self, name: str) -> Tensor:
        """The output of a node type of kind ``class``, averaged over positions, ``[images, nodes]``."""
        return torch.cat([shard[f"classes/{name}"] for shard in self._all()])

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Class scores ``[images, classes]`` of the network, and the images' classes ``[images]``."""
        shards = list(self._all())
        return torch.cat([shard[OUTPUT] for shard in shards]), torch.cat([shard[LABEL] for shard in shards])

    def _all(self) -> Iterator[dict[str, Tensor]]:
        for number in range(-(-len(self) // self._batch)):
            yield _read(self.folder / shard_name(number))

    def _by_source(self, sources: list[str], edges: Tensor, weights: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Edges and weights from each source, with its nodes numbered from 0; entries without a player (``NONE``) are not
        edges.
        """
        weight = weights.flatten()
        ends = accumulate((self.layout.nodes[source] for source in sources), initial=0)
        for source, (first, last) in zip(sources, pairwise(ends), strict=True):
            inside = (edges[0] >= first) & (edges[0] < last)
            shift = torch.tensor([[first], [0]])
            yield source, edges[:, inside] - shift, weight[inside]


def shard_name(number: int) -> str:
    """The file of a batch of graphs."""
    return f"graphs-{number:05d}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}). Remove it and build the graphs again.") from error
