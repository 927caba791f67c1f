"""The cut itself: which channels leave which layers, taken out of a copy of the network or named in a file.

torch-pruning's per-layer functions take channels out. Layers that lose everything are replaced by stand-ins.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning.pruner.function import PrunerBox

from ...common.errors import InputError
from ..graph.leaf_modules import ZeroPadChannels
from ..graph.stand_ins import Constant, Subsample
from .group import ChannelGroup, Side
from .zero_pad import PAD_PRUNER, followable


@dataclass(frozen=True)
class LayerCut:
    """Channels that leave one layer, and the widths that the layer had before. For a parameter, "out" is its dimension."""

    out_removed: tuple[int, ...] = ()
    in_removed: tuple[int, ...] = ()
    out_width: int | None = None
    in_width: int | None = None


Cut = Mapping[str, LayerCut]


def cut_of(groups: Iterable[ChannelGroup], removed: Mapping[str, Iterable[int]]) -> dict[str, LayerCut]:
    """The channels that leave each layer when units (by group name) are removed.

    Raises:
        InputError: an unknown group, a locked one, a unit that does not exist, or all units of a group without those of the
            whole branch.
    """
    groups = tuple(groups)
    by_name = {group.name: group for group in groups}
    outs: dict[str, set[int]] = defaultdict(set)
    ins: dict[str, set[int]] = defaultdict(set)
    widths: dict[tuple[str, Side], int] = {}
    for name, units in removed.items():
        units = sorted(set(units))
        if not units:
            continue
        group = by_name.get(name)
        if group is None:
            raise InputError(f"The plan names the group {name!r}, which this network does not have.")
        if group.locked:
            raise InputError(f"{name} cannot be cut: {group.locked}")
        if units[0] < 0 or units[-1] >= group.units:
            raise InputError(f"{name} has units 0 to {group.units - 1}; the plan removes {units[-1]}.")
        if len(units) == group.units and not group.branch:
            raise InputError(f"The plan removes all {group.units} units of {name}; at least one must stay.")
        if len(units) == group.units:
            left = [g.name for g in groups if g.branch == group.branch and len(set(removed.get(g.name, ()))) < g.units]
            if left:
                raise InputError(
                    f"The plan removes all {group.units} units of {name}, so the whole branch up to {group.branch} must go: "
                    f"remove all units of {', '.join(left)} too, or leave one here."
                )
        for member in group.members:
            target = outs if member.side == "out" else ins
            target[member.layer].update(channel for unit in units for channel in member.channels[unit])
            widths[member.layer, member.side] = member.width
    return {
        layer: LayerCut(
            tuple(sorted(outs.get(layer, ()))),
            tuple(sorted(ins.get(layer, ()))),
            widths.get((layer, "out")),
            widths.get((layer, "in")),
        )
        for layer in dict.fromkeys([*outs, *ins])
    }


def apply_cut(module: nn.Module, cut: Cut, example: Tensor) -> nn.Module:
    """A copy of ``module`` without the channels in ``cut``. The original is untouched.

    Works on the network the cut was planned for or on a fresh one of the same architecture.

    Raises:
        InputError: a layer is missing or has another width than the cut was planned for.
    """
    result = followable(module, example)
    modules, parameters = dict(result.named_modules()), dict(result.named_parameters())
    with torch.no_grad():
        for name, part in cut.items():
            if name in modules:
                _cut_layer(result, name, modules[name], part)
            elif name in parameters:
                _cut_parameter(result, name, part)
            else:
                raise InputError(
                    f"The plan cuts {name!r}, which this network does not have. Is it another model's plan?"
                )
    return result.train(module.training)


def rest_of_cut(whole: Cut, done: Cut) -> dict[str, LayerCut]:
    """What is left to cut of ``whole`` in a network from which ``done``, a part of it, is gone: channels count what is left."""
    rest = {}
    for name, part in whole.items():
        before = done.get(name, LayerCut())
        if before.out_width is not None and len(before.out_removed) == before.out_width:
            continue  # a stand-in has taken its place
        sides = []
        for removed, gone, width in (
            (part.out_removed, before.out_removed, part.out_width),
            (part.in_removed, before.in_removed, part.in_width),
        ):
            lost = set(gone)
            left = [channel for channel in range(width or 0) if channel not in lost]
            wanted = set(removed) - lost
            sides.append(
                (tuple(index for index, channel in enumerate(left) if channel in wanted), len(left) if width else None)
            )
        (outs, out_width), (ins, in_width) = sides
        if outs or ins:
            rest[name] = LayerCut(outs, ins, out_width, in_width)
    return rest


def cut_to_json(cut: Cut) -> dict[str, Any]:
    """Plain values of a cut, for ``plan.json``."""
    return {
        name: {
            "out_width": part.out_width,
            "out_removed": list(part.out_removed),
            "in_width": part.in_width,
            "in_removed": list(part.in_removed),
        }
        for name, part in cut.items()
    }


def cut_from_json(values: Mapping[str, Any]) -> dict[str, LayerCut]:
    """The inverse of :func:`cut_to_json`."""
    return {
        name: LayerCut(
            tuple(part["out_removed"]), tuple(part["in_removed"]), part.get("out_width"), part.get("in_width")
        )
        for name, part in values.items()
    }


def _cut_layer(root: nn.Module, name: str, module: nn.Module, part: LayerCut) -> None:
    if isinstance(module, Subsample):  # nothing of it is left to cut
        return
    if isinstance(module, Constant):
        _check_width(name, len(module.bias), part.out_width, part.out_removed)
        kept = [channel for channel in range(len(module.bias)) if channel not in set(part.out_removed)]
        module.bias = nn.Parameter(module.bias[kept])
        return
    stride: Any = module.stride if isinstance(module, nn.Conv2d) else (1, 1)
    if part.out_width is not None and len(part.out_removed) == part.out_width:
        root.set_submodule(name, Subsample(stride))
        return
    if isinstance(module, nn.Conv2d) and part.in_width is not None and len(part.in_removed) == part.in_width:
        kept = [channel for channel in range(module.out_channels) if channel not in set(part.out_removed)]
        bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
        root.set_submodule(name, Constant(bias[kept], stride))
        return
    pruner: Any = PAD_PRUNER if isinstance(module, ZeroPadChannels) else PrunerBox[ops.module2type(module)]
    for removed, planned, width, prune in (
        (part.out_removed, part.out_width, pruner.get_out_channels(module), pruner.prune_out_channels),
        (part.in_removed, part.in_width, pruner.get_in_channels(module), pruner.prune_in_channels),
    ):
        if not removed:
            continue
        _check_width(name, width, planned, removed)
        pruner.pruning_dim = -1
        prune(module, list(removed))


def _check_width(name: str, width: int, planned: int | None, removed: Sequence[int]) -> None:
    if planned != width or (removed and removed[-1] >= width):
        raise InputError(
            f"{name} has {width} channels, the plan was made for {planned}. Is it another model's plan, or has it been "
            "cut already?"
        )


def _cut_parameter(root: nn.Module, name: str, part: LayerCut) -> None:
    holder_name, _, leaf = name.rpartition(".")
    holder = root.get_submodule(holder_name)
    parameter = cast(nn.Parameter, getattr(holder, leaf))
    dims = [dim for dim, size in enumerate(parameter.shape) if size > 1]
    if not dims or parameter.shape[dims[-1]] != part.out_width:
        raise InputError(
            f"The parameter {name} has shape {tuple(parameter.shape)}; the plan was made for {part.out_width}."
        )
    kept = [index for index in range(parameter.shape[dims[-1]]) if index not in set(part.out_removed)]
    setattr(holder, leaf, nn.Parameter(parameter.index_select(dims[-1], torch.tensor(kept))))
