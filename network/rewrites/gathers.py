"""Splits, slices and shuffles of channels become :class:`SelectChannels`, which can lose any channel.

``chunk`` needs halves of one size and ``view(n, groups, c // groups, h, w)`` groups of one size; a layer that picks channels
by their numbers does not.
"""

from typing import Any

import torch
from torch import Tensor, fx

from ..graph.execution import image_dependent
from ..graph.leaf_modules import SelectChannels
from ..graph.trace import free_name
from ..provenance.labelling import Labelling
from ..provenance.moves import is_move, moved, varying
from .edits import call, erase_unread

_JOINING = ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")


def select_channels(view: fx.GraphModule, labelling: Labelling) -> list[str]:
    """Replace every chain of moves that only picks channels of a labelled value; a note for each."""
    modules = dict(view.named_modules())
    values, images, notes = labelling.values, image_dependent(view), []
    chains: dict[fx.Node, tuple[fx.Node, Any]] = {}
    for node in list(view.graph.nodes):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        source = node.args[0] if node.args else None
        if not is_move(node, module) or source not in images or not _is_simple(node, values):
            continue
        base, elements = chains.get(source, (source, None))
        if elements is None:
            value = values.get(source)
            if not isinstance(value, Tensor) or not _is_labelled(labelling.of.get(source)):
                continue
            elements = torch.arange(1, value.numel() + 1, dtype=torch.float64).reshape(value.shape)
        found = moved(node, module, lambda _, elements=elements: elements, values.__getitem__)  # type: ignore[misc]
        chains[node] = base, found
    for node, (base, elements) in chains.items():
        readers = [user for user in node.users if user not in chains]
        if not isinstance(elements, Tensor) or not readers:
            continue
        picked = _picked(elements, values[base], labelling.of[base])
        if picked is None:
            continue
        dim, source = picked
        if len(source) == values[base].shape[dim] and torch.equal(source, torch.arange(len(source))):
            new = base
            notes.append(f"{node.name}: gives back {base.name} as it was")
        else:
            name = free_name(view, f"{base.name}_select")
            view.add_submodule(name, SelectChannels(source, values[base].shape[dim], dim))
            new = call(view, node, name, (base,))
            values[new] = values[node]
            notes.append(f"{name}: {len(source)} of the {values[base].shape[dim]} channels of {base.name}")
        for reader in readers:
            reader.replace_input_with(node, new)
    for node in reversed(list(chains)):
        if not node._erased:
            erase_unread(view, node)
    return notes


def _is_simple(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether a move reads one tensor, or one part of what an operation returned."""
    name = getattr(node.target, "__name__", str(node.target))
    return name not in _JOINING and not any(_is_image_tensor(other, values) for other in node.all_input_nodes[1:])


def _is_image_tensor(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    return isinstance(values.get(node), Tensor) and node.op != "get_attr"


def _is_labelled(labels: Any) -> bool:
    return isinstance(labels, Tensor) and len(varying(labels)) == 1


def _picked(elements: Tensor, base: Tensor, labels: Tensor) -> tuple[int, Tensor] | None:
    """The dimension and the channels, if ``elements`` are those of ``base`` with channels picked along its labelled one."""
    (dim,) = varying(labels)
    if elements.dim() != base.dim() or dim >= elements.dim() or not bool((elements > 0).all()):
        return None
    if [size for other, size in enumerate(elements.shape) if other != dim] != [
        size for other, size in enumerate(base.shape) if other != dim
    ]:
        return None
    first = elements.movedim(dim, 0).flatten(1)[:, 0].long() - 1
    stride = base[(0,) * (dim + 1)].numel()
    channels = (first // stride) % base.shape[dim]
    whole = torch.arange(1, base.numel() + 1, dtype=torch.float64).reshape(base.shape)
    return (dim, channels) if torch.equal(whole.index_select(dim, channels), elements) else None
