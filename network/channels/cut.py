"""Cuts: which channels each layer loses, removed from a copy of a network or written to a file.

torch-pruning's functions for single layers remove the channels. Layers that lose all channels are replaced by stand-ins.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch_pruning import ops
from torch_pruning.pruner.function import PrunerBox

from ...common.errors import InputError
from ..graph.leaf_modules import ChannelMean, Normalize, SelectChannels, ZeroPadChannels
from ..graph.stand_ins import Constant, Subsample
from .group import ChannelGroup, Side
from .zero_pad import PAD_PRUNER, followable


@dataclass(frozen=True)
class LayerCut:
    """The channels that one layer loses, and its widths before. A parameter's channels, along ``dim``, count as outputs."""

    out_removed: tuple[int, ...] = ()
    in_removed: tuple[int, ...] = ()
    out_width: int | None = None
    in_width: int | None = None
    dim: int | None = None


Cut = Mapping[str, LayerCut]


def cut_of(groups: Iterable[ChannelGroup], removed: Mapping[str, Iterable[int]]) -> dict[str, LayerCut]:
    """The channels that each layer loses when units are removed.

    Args:
        removed: the units to remove, by group name.

    Raises:
        InputError: a group is unknown or locked, a unit does not exist, or all units of a group are removed without those of
            its whole branch.
    """
    groups = tuple(groups)
    by_name = {group.name: group for group in groups}
    outs: dict[str, set[int]] = defaultdict(set)
    ins: dict[str, set[int]] = defaultdict(set)
    widths: dict[tuple[str, Side], int] = {}
    dims: dict[str, int | None] = {}
    chosen = {name: sorted(set(units)) for name, units in removed.items()}
    for name, units in chosen.items():
        if not units:
            continue
        if name not in by_name:
            raise InputError(
                f"The plan names the group {name!r}, which this network does not have. Use the plan of this network."
            )
        _check_units(by_name[name], chosen, groups)
        for member in by_name[name].members:
            target = outs if member.side == "out" else ins
            target[member.layer].update(channel for unit in units for channel in member.channels[unit])
            widths[member.layer, member.side] = member.width
            dims[member.layer] = member.dim
    return {
        layer: LayerCut(
            tuple(sorted(outs.get(layer, ()))),
            tuple(sorted(ins.get(layer, ()))),
            widths.get((layer, "out")),
            widths.get((layer, "in")),
            dims[layer],
        )
        for layer in dict.fromkeys([*outs, *ins])
    }


def apply_cut(module: nn.Module, cut: Cut, example: Tensor) -> nn.Module:
    """A copy of ``module`` without the channels in ``cut``; the original is unchanged.

    ``module`` is the network that the cut was planned for, or another of the same architecture.

    Raises:
        InputError: a layer is missing or has another width than when the cut was planned.
    """
    result = followable(module, example)
    modules = dict(result.named_modules())
    parameters = {name for name, _ in (*result.named_parameters(), *result.named_buffers())}
    with torch.no_grad():
        for name, part in cut.items():
            if name in modules:
                _cut_layer(result, name, modules[name], part)
            elif name in parameters:
                _cut_parameter(result, name, part)
            else:
                raise InputError(
                    f"The plan cuts {name!r}, which this network does not have. Use the plan of this network."
                )
    return result.train(module.training)


def rest_of_cut(whole: Cut, done: Cut) -> dict[str, LayerCut]:
    """The part of ``whole`` that remains after ``done``, with channels numbered as in the network that ``done`` left."""
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
            rest[name] = LayerCut(outs, ins, out_width, in_width, part.dim)
    return rest


def cut_to_json(cut: Cut) -> dict[str, Any]:
    """A cut as plain values for ``plan.json``."""
    return {
        name: {
            "out_width": part.out_width,
            "out_removed": list(part.out_removed),
            "in_width": part.in_width,
            "in_removed": list(part.in_removed),
            **({} if part.dim is None else {"dim": part.dim}),
        }
        for name, part in cut.items()
    }


def cut_from_json(values: Mapping[str, Any]) -> dict[str, LayerCut]:
    """The inverse of :func:`cut_to_json`."""
    return {
        name: LayerCut(
            tuple(part["out_removed"]),
            tuple(part["in_removed"]),
            part.get("out_width"),
            part.get("in_width"),
            part.get("dim"),
        )
        for name, part in values.items()
    }


def _check_units(group: ChannelGroup, removed: Mapping[str, list[int]], groups: Iterable[ChannelGroup]) -> None:
    """Check that a group may lose the units that are to be removed from it."""
    units, name = removed[group.name], group.name
    if group.locked:
        raise InputError(f"{name} cannot be cut: {group.locked}")
    if units[0] < 0 or units[-1] >= group.units:
        odd = units[0] if units[0] < 0 else units[-1]
        raise InputError(f"{name} has units 0 to {group.units - 1}; the plan removes {odd}.")
    if len(units) < group.units:
        return
    if not group.branch:
        raise InputError(f"The plan removes all {group.units} units of {name}; at least one must stay.")
    left = [
        other.name
        for other in groups
        if other.branch == group.branch and len(removed.get(other.name, ())) < other.units
    ]
    if left:
        raise InputError(
            f"The plan removes all {group.units} units of {name}, so the whole branch up to {group.branch} must go: "
            f"remove all units of {', '.join(left)} too, or keep one here."
        )


def _cut_layer(root: nn.Module, name: str, module: nn.Module, part: LayerCut) -> None:
    if isinstance(module, Subsample | Normalize | ChannelMean):  # they have no channels of their own
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
    if isinstance(module, SelectChannels):
        _check_width(name, module.in_channels, part.in_width, part.in_removed)
        module.drop_inputs(list(part.in_removed))
        return
    if isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels < module.out_channels:
        _check_width(name, module.out_channels, part.out_width, part.out_removed)
        _cut_depthwise(module, part.out_removed)
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


def _cut_depthwise(module: _ConvNd, removed: Sequence[int]) -> None:
    """Remove output channels, and with them the inputs, from a depthwise convolution with several outputs per input."""
    lost, outputs = set(removed), module.out_channels // module.in_channels
    kept = torch.tensor(
        [channel for channel in range(module.out_channels) if channel not in lost], device=module.weight.device
    )
    module.weight = nn.Parameter(module.weight[kept])
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias[kept])
    module.out_channels = len(kept)
    module.in_channels = module.groups = len(kept) // outputs


def _check_width(name: str, width: int, planned: int | None, removed: Sequence[int]) -> None:
    if planned != width or (removed and removed[-1] >= width):
        raise InputError(
            f"{name} has {width} channels, the plan was made for {planned}. Use the plan of this network, on the network "
            "before it was cut."
        )


def _cut_parameter(root: nn.Module, name: str, part: LayerCut) -> None:
    holder_name, _, leaf = name.rpartition(".")
    holder = root.get_submodule(holder_name)
    parameter = cast(Tensor, getattr(holder, leaf))
    wide = [dim for dim, size in enumerate(parameter.shape) if size > 1]
    dim = part.dim if part.dim is not None else (wide or [0])[-1]
    if dim >= parameter.dim() or parameter.shape[dim] != part.out_width:
        raise InputError(
            f"The parameter {name} has shape {tuple(parameter.shape)}; the plan was made for {part.out_width} channels. "
            "Use the plan of this network."
        )
    removed = set(part.out_removed)
    kept = torch.tensor(
        [index for index in range(parameter.shape[dim]) if index not in removed], device=parameter.device
    )
    smaller = parameter.index_select(dim, kept)
    setattr(holder, leaf, nn.Parameter(smaller) if isinstance(parameter, nn.Parameter) else smaller)
