"""Means and norms over channels as modules, which can lose channels: a mean keeps dividing by the number that there were."""

from typing import Any

from torch import Tensor, fx

from ..graph.leaf_modules import ChannelMean, Normalize
from ..graph.trace import free_name
from ..provenance.labelling import Labelling
from ..provenance.moves import varying
from ..provenance.operations import operation_name, option, reduced_dims
from .edits import call, replace


def means_over_channels(view: fx.GraphModule, labelling: Labelling) -> list[str]:
    """Replace ``mean`` and ``F.normalize`` along labelled dimensions; a note for each."""
    notes = []
    for node in list(view.graph.nodes):
        if node.op not in ("call_function", "call_method") or operation_name(node) not in ("mean", "normalize"):
            continue
        source: Any = option(node, 0, "input")
        labels = labelling.of.get(source) if isinstance(source, fx.Node) else None
        if not isinstance(labels, Tensor) or len(varying(labels)) != 1:
            continue
        (dim,) = varying(labels)
        dims = reduced_dims(node, labels.dim())
        if dim not in dims:
            continue
        if operation_name(node) == "normalize":
            module: Any = Normalize(option(node, 1, "p", default=2.0), dim, option(node, 3, "eps", default=1e-12))
        elif "dtype" in node.kwargs or 0 in dims:
            continue
        else:
            keepdim = option(node, 2, "keepdim", default=False)
            module = ChannelMean(tuple(dims), dim, labelling.values[source].shape[dim], keepdim)
        name = free_name(view, f"{node.name}_{type(module).__name__.lower()}")
        view.add_submodule(name, module.eval())
        replace(view, node, call(view, node, name, (source,)))
        notes.append(f"{name}: over the channels of {source.name}")
    return notes
