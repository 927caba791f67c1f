"""The common structure of the attribution graphs (At-GCs) of one network, and the names in their format."""

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

FEEDS, FED_BY = "feeds", "fed_by"
"""The two relations between kernels: forward, and its reverse."""
LABEL, PREDICTION, OUTPUT = "y", "prediction", "output"
"""Fields of a graph: the image's class ``[1]``, the predicted class ``[1]``, the class scores ``[1, classes]``."""


@dataclass(frozen=True)
class GraphLayout:
    """The nodes and links of every At-GC of a network; only feature maps and edges differ between images.

    ``nodes`` maps a node type (a layer, a join, the classifier) to its number of nodes, in network order; ``kinds`` to
    ``kernel``, ``join`` or ``class``; ``parameters`` to the features that do not depend on the image, float32 ``[nodes, P]``.
    ``links`` are (source, target) pairs of node types. The nodes of kind ``class`` are the classes.
    """

    nodes: Mapping[str, int]
    kinds: Mapping[str, str]
    parameters: Mapping[str, Tensor]
    links: tuple[tuple[str, str], ...]
    classes: int

    @property
    def edge_types(self) -> tuple[tuple[str, str, str], ...]:
        """Both relations of every link, as torch-geometric names them."""
        forward = [(source, FEEDS, target) for source, target in self.links]
        return (*forward, *((target, FED_BY, source) for source, target in self.links))


def empty_graph() -> "HeteroData":
    """A graph with several node types and no nodes yet, in torch-geometric's format."""
    return _hetero_data()()


@functools.cache
def _hetero_data() -> Any:
    """torch-geometric's class, imported when the first graph is needed.

    The import takes a second and warns about torch.jit.script, which torch-geometric uses and users of secateur cannot change.
    """
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # depends on torch's version
            warnings.filterwarnings("ignore", r"`torch\.jit\.script", category)
        from torch_geometric.data import HeteroData
    return HeteroData
