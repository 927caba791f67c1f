"""Controls for an attribution graph (At-GC): the same graph with a part removed.

Each control is a function of a graph and does not change it. Permuted labels are a control of the targets, not of the graph:
pass permuted targets to the classifier.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...common.errors import UsageError
from ..agic.layout import GraphLayout

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData


EdgeType = tuple[str, str, str]


@dataclass(frozen=True)
class ControlTask:
    """The arguments of a control besides the graph: its index, the layout, the node types of the last stage."""

    index: int
    layout: GraphLayout
    last_stage: Collection[str] = ()
    seed: int = 0


def full(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """The unchanged graph."""
    return graph


def without_classes(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """No links to or from classes; constant features of classes and of the last stage, which nearly determine the class."""
    classes = {name for name, kind in task.layout.kinds.items() if kind == "class"}
    kept = _linked(graph, lambda kind: classes.isdisjoint((kind[0], kind[2])))
    return _featureless(kept, classes.union(task.last_stage))


def nodes_only(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """No links."""
    return _linked(graph, lambda _: False)


def edges_only(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """Constant features: the nodes of a type differ only in their links."""
    return _featureless(graph, graph.node_types)


def shuffled(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """Permute the nodes of each node type and graph at random, relative to the links.

    The links keep their structure and weights, but no longer belong to their kernels.
    """
    generator = torch.Generator().manual_seed(task.seed * 1_000_003 + task.index)
    places = {name: torch.randperm(count, generator=generator) for name, count in task.layout.nodes.items()}
    changed = graph.clone()
    for (source, _, target), store in changed.edge_items():
        sources, targets = store["edge_index"]
        store["edge_index"] = torch.stack([places[source][sources], places[target][targets]])
    return changed


Control = Callable[["HeteroData", ControlTask], "HeteroData"]
CONTROLS: dict[str, Control] = {
    control.__name__: control for control in (full, without_classes, nodes_only, edges_only, shuffled)
}


class ControlledGraphs(Sequence["HeteroData"]):
    """Graphs under a control, computed on access.

    Raises:
        UsageError: the control does not exist; the message lists the valid names.
    """

    def __init__(
        self,
        graphs: Sequence["HeteroData"],
        control: str,
        layout: GraphLayout,
        last_stage: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        if control not in CONTROLS:
            raise UsageError(f"unknown control {control!r}. Expected {', '.join(CONTROLS)}.")
        unknown = sorted(set(last_stage) - set(layout.nodes))
        if unknown:
            raise UsageError(f"last_stage names {unknown[0]!r}, which is not a node type of these graphs.")
        self.graphs, self.control = graphs, CONTROLS[control]
        self.layout, self.last_stage, self.seed = layout, last_stage, seed

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> "HeteroData":  # type: ignore[override]
        task = ControlTask(index, self.layout, self.last_stage, self.seed)
        return self.control(self.graphs[index], task)


def _featureless(graph: "HeteroData", names: Collection[str]) -> "HeteroData":
    changed = graph.clone()
    for name in names:
        changed[name].x = torch.zeros_like(changed[name].x)
    return changed


def _linked(graph: "HeteroData", keep: Callable[[EdgeType], bool]) -> "HeteroData":
    """Keep only the links of the given edge types."""
    changed = graph.clone()
    for edge_type, store in changed.edge_items():
        if not keep(edge_type):
            empty: Tensor = store["edge_weight"][:0]
            store["edge_index"], store["edge_weight"] = store["edge_index"][:, :0], empty
    return changed
