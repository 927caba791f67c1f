"""What an attribution graph (At-GC) is compared with: the same graph with something taken away.

Each control is a function of a graph and leaves the graph as it was. The control of permuted labels is one of targets, not
of graphs: hand permuted targets to the classifier.
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
    """What a control is given besides the graph: its number among the graphs, the layout, the node types of the last stage."""

    index: int
    layout: GraphLayout
    last_stage: Collection[str] = ()
    seed: int = 0


def full(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """The graph as it is."""
    return graph


def without_classes(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """No links to or from classes; the features of classes and of the last stage, which all but say the class, constant."""
    classes = {name for name, kind in task.layout.kinds.items() if kind == "class"}
    kept = _linked(graph, lambda kind: classes.isdisjoint((kind[0], kind[2])))
    return _featureless(kept, classes.union(task.last_stage))


def nodes_only(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """No links."""
    return _linked(graph, lambda _: False)


def edges_only(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """Constant features: all nodes of a type are alike but for their links."""
    return _featureless(graph, graph.node_types)


def shuffled(graph: "HeteroData", task: ControlTask) -> "HeteroData":
    """Nodes change places among the links, by one random permutation for each node type and graph.

    The links keep their structure and weights; which kernel stands where in it is lost.
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
    """Graphs under a control, made when they are read.

    Raises:
        UsageError: no such control; the valid names are listed.
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
            raise UsageError(f"unknown control {control!r}. There are: {', '.join(CONTROLS)}.")
        unknown = sorted(set(last_stage) - set(layout.nodes))
        if unknown:
            raise UsageError(f"last_stage names {unknown[0]!r}, which is no node type of these graphs.")
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
    """Only links of the edge types to keep; the others have none."""
    changed = graph.clone()
    for edge_type, store in changed.edge_items():
        if not keep(edge_type):
            empty: Tensor = store["edge_weight"][:0]
            store["edge_index"], store["edge_weight"] = store["edge_index"][:, :0], empty
    return changed
