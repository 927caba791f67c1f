"""A batch of attribution graphs (At-GCs) of one network as dense features and one sparse matrix of links.

All graphs of a network have the same nodes, so features are ``[graphs, nodes, F]`` for every node type, and the messages of
all edge types are one product with a sparse matrix. This is what ``HeteroConv`` of ``GraphConv`` in torch-geometric computes,
without a separate call for each of up to hundreds of edge types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import InputError
from .layout import LABEL, OUTPUT, PREDICTION, GraphLayout

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData


EdgeType = tuple[str, str, str]


class NodeOrder:
    """The numbering of a layout's nodes and links: node types in network order, edge types by their target.

    Each edge type has a slot for every node of its target, where the messages over it are summed. ``names``, ``sizes`` (nodes),
    ``incoming`` (edge types) and ``slots`` (all slots of these) have one entry per node type.
    """

    def __init__(self, layout: GraphLayout) -> None:
        self.names, self.sizes = tuple(layout.nodes), list(layout.nodes.values())
        self.nodes = sum(self.sizes)
        first = dict(zip(self.names, accumulate(self.sizes, initial=0), strict=False))
        self.offsets: dict[EdgeType, tuple[int, int]] = {}
        """For each edge type, the number of its first slot and of its source's first node."""
        self.incoming: list[int] = []
        self.slot_count = 0
        for name, size in layout.nodes.items():
            arriving = [edge_type for edge_type in layout.edge_types if edge_type[2] == name]
            for edge_type in arriving:
                self.offsets[edge_type] = (self.slot_count, first[edge_type[0]])
                self.slot_count += size
            self.incoming.append(len(arriving))
        self.slots = [size * count for size, count in zip(self.sizes, self.incoming, strict=True)]


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix by rows: where each row starts, ``[rows]``, and its entries' columns and values, both ``[entries]``."""

    starts: Tensor
    columns: Tensor
    values: Tensor

    def __matmul__(self, dense: Tensor) -> Tensor:
        """The product with ``[columns, width]``, as a weighted embedding bag: as exact as torch's sparse product, and faster on
        CPUs.
        """
        return F.embedding_bag(self.columns, dense, self.starts, mode="sum", per_sample_weights=self.values)

    def to(self, device: str) -> "SparseRows":
        return SparseRows(self.starts.to(device), self.columns.to(device), self.values.to(device))


@dataclass(frozen=True)
class Links:
    """The weighted links of a batch, a matrix ``[graphs * slots, graphs * nodes]``, and its transpose."""

    matrix: SparseRows
    transposed: SparseRows

    def gather(self, hidden: Tensor, slots: int) -> Tensor:
        """Sum over the links of weight times source, ``[graphs, nodes, width]`` to ``[graphs, slots, width]``."""
        graphs, nodes, width = hidden.shape
        summed: Tensor = _Product.apply(hidden.reshape(graphs * nodes, width), self)
        return summed.view(graphs, slots, width)

    def to(self, device: str) -> "Links":
        return Links(self.matrix.to(device), self.transposed.to(device))


class _Product(torch.autograd.Function):
    """The product with the links; its gradient uses the stored transpose, whereas torch would sort in every backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, links: Links) -> Tensor:
        ctx.links = links
        return links.matrix @ hidden

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.links.transposed @ gradient.contiguous(), None


@dataclass(frozen=True)
class GraphBatch:
    """``features`` maps a node type to float32 ``[graphs, nodes, F]``; labels and predictions ``[graphs]``, class scores
    ``[graphs, classes]``."""

    features: Mapping[str, Tensor]
    links: Links
    labels: Tensor
    predictions: Tensor
    outputs: Tensor


def collate(graphs: Sequence["HeteroData"], layout: GraphLayout, order: NodeOrder) -> GraphBatch:
    """Collate graphs into a batch; an edge type that a graph lacks has no links there.

    Raises:
        InputError: a graph has other node types, another number of nodes, or edge types that the layout lacks.
    """
    rows, columns, weights = [], [], []
    for number, graph in enumerate(graphs):
        _check_nodes(graph, layout)
        slot, node, weight = _numbered(graph, order)
        rows.append(slot + number * order.slot_count)
        columns.append(node + number * order.nodes)
        weights.append(weight)
    return GraphBatch(
        {name: torch.stack([graph[name].x for graph in graphs]).float() for name in order.names},
        Links(
            _sparse(rows, columns, weights, len(graphs) * order.slot_count),
            _sparse(columns, rows, weights, len(graphs) * order.nodes),
        ),
        torch.cat([graph[LABEL] for graph in graphs]),
        torch.cat([graph[PREDICTION] for graph in graphs]),
        torch.cat([graph[OUTPUT] for graph in graphs]).float(),
    )


def _check_nodes(graph: "HeteroData", layout: GraphLayout) -> None:
    found = {name: len(store["x"]) for name, store in graph.node_items()}
    for name, count in layout.nodes.items():
        if found.get(name) != count:
            raise InputError(
                f"A graph has {found.get(name, 'no')} nodes of type {name!r}, the layout {count}. "
                "Build the graphs and the layout from the same network."
            )
    if len(found) != len(layout.nodes):
        extra = sorted(set(found) - set(layout.nodes))
        raise InputError(
            f"A graph has nodes of type {extra[0]!r}, the layout has none. Build both from the same network."
        )


def _numbered(graph: "HeteroData", order: NodeOrder) -> tuple[Tensor, Tensor, Tensor]:
    """For each link of a graph, its slot, the number of its source and its weight."""
    pairs, weights, starts = [], [], []
    for edge_type, store in graph.edge_items():
        if edge_type not in order.offsets:
            raise InputError(f"A graph has links {edge_type}, the layout none. Build both from the same network.")
        pairs.append(store["edge_index"])
        weights.append(store["edge_weight"])
        starts.append(order.offsets[edge_type])
    if not pairs:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0)
    lengths = torch.tensor([len(weight) for weight in weights])
    source, target = torch.cat(pairs, 1)
    first_slot, first_node = torch.tensor(starts).repeat_interleave(lengths, 0).unbind(1)
    return target + first_slot, source + first_node, torch.cat(weights).float()


def _sparse(rows: Sequence[Tensor], columns: Sequence[Tensor], weights: Sequence[Tensor], row_count: int) -> SparseRows:
    """A sparse matrix of blocks, each with rows below those of the previous block, so that sorted blocks give a sorted
    whole.
    """
    orders = [block.argsort(stable=True) for block in rows]
    ends = torch.bincount(torch.cat(list(rows)), minlength=row_count).cumsum(0)
    return SparseRows(
        torch.cat([ends.new_zeros(1), ends[:-1]]),
        torch.cat([block[order] for block, order in zip(columns, orders, strict=True)]),
        torch.cat([block[order] for block, order in zip(weights, orders, strict=True)]),
    )
