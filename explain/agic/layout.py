"""What the attribution graphs (At-GCs) of one network have in common, and what the words of their form are."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

FEEDS, FED_BY = "feeds", "fed_by"
"""The two relations between kernels: forward, and its reverse."""
LABEL, PREDICTION, OUTPUT = "y", "prediction", "output"
"""Of a graph: the image's class ``[1]``, the class that the network predicts ``[1]``, its class scores ``[1, classes]``."""


@dataclass(frozen=True)
class GraphLayout:
    """The nodes and links that every At-GC of a network has; only feature maps and edges differ from image to image.

    ``nodes`` maps a node type (a layer, a join, the classifier) to its number of nodes, in network order; ``kinds`` to
    ``kernel``, ``join`` or ``class``; ``parameters`` to what does not depend on the image, float32 ``[nodes, P]``.
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
