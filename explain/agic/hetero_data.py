"""torch-geometric's form of a graph, made without importing torch-geometric before the first one is asked for.

The import takes a second and warns of torch.jit.script, which torch-geometric uses and no user of secateur can change.
"""

import functools
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData


def empty_graph() -> "HeteroData":
    """A graph of several node types, without any node."""
    return _load()()


@functools.cache
def _load() -> Any:
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # by torch's version
            warnings.filterwarnings("ignore", r"`torch\.jit\.script", category)
        from torch_geometric.data import HeteroData
    return HeteroData
