"""The units of a group: root channels that layers tie together, and each layer's channels by unit."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.cluster.hierarchy import DisjointSet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..graph.leaf_modules import SelectChannels, ZeroPadChannels
from .group import ChannelGroup, Member, Side


@dataclass(frozen=True)
class Reached:
    """One side of a layer (or a parameter) whose channels depend on a group's root channels.

    ``pairs``: (channel of the layer, root channel). ``width`` is the layer's number of channels on that side.
    """

    module: Any
    layer: str
    side: Side
    width: int
    pairs: set[tuple[int, int]]


def group_of(name: str, width: int, reached: Sequence[Reached], locked: str = "") -> ChannelGroup:
    """The group of a layer's output channels.

    Args:
        name: the layer's name.
        width: its number of output channels, the root channels.
        reached: the layers that depend on these channels, including the layer itself.
        locked: the reason why the group must stay whole, if already known; else the first reason found here.
    """
    roots = DisjointSet(range(width))
    for each in reached:
        partly_tied = _merge(roots, each)
        locked = locked or partly_tied or _unsupported(each)
    units = sorted((sorted(channels) for channels in roots.subsets()), key=min)
    unit_of = {channel: unit for unit, channels in enumerate(units) for channel in channels}
    members = tuple(_member(each, unit_of, len(units)) for each in reached)
    if any(not channels for member in members if member.layer == name for channels in member.channels):
        locked = locked or "not every unit has channels."
    if len(units) < 2:
        locked = locked or "it has a single unit."
    return ChannelGroup(name, members, locked)


def _merge(roots: DisjointSet, reached: Reached) -> str:
    """Merge root channels that share a channel of the layer or that it ties together; the reason if it cannot be cut."""
    by_channel: dict[int, list[int]] = defaultdict(list)
    for channel, root in reached.pairs:
        by_channel[channel].append(root)
    for shared in by_channel.values():
        _merge_all(roots, shared)
    parts = _tied_parts(reached.module)
    if parts == 1:
        return ""
    if reached.width % parts or len(by_channel) != reached.width:
        return f"{reached.layer} ties only a part of its channels to others."
    places: dict[int, list[int]] = defaultdict(list)
    for channel, shared in by_channel.items():
        places[channel % (reached.width // parts)].append(shared[0])
    for tied in places.values():
        _merge_all(roots, tied)
    return ""


def _merge_all(roots: DisjointSet, channels: Sequence[int]) -> None:
    for other in channels[1:]:
        roots.merge(channels[0], other)


def _unsupported(reached: Reached) -> str:
    """The reason why a layer of this kind cannot be cut; empty if it can."""
    module = reached.module
    if isinstance(module, nn.MultiheadAttention | nn.LSTM | nn.Embedding):
        return f"its channels pass through {reached.layer} ({type(module).__name__})."
    if isinstance(module, _ConvNd) and module.groups > 1 and module.in_channels == module.groups != module.out_channels:
        return f"{reached.layer} is a depthwise convolution with several outputs per input."
    return ""


def _member(reached: Reached, unit_of: dict[int, int], units: int) -> Member:
    channels: list[list[int]] = [[] for _ in range(units)]
    for channel, root in reached.pairs:
        channels[unit_of[root]].append(channel)
    by_unit = tuple(tuple(sorted(set(own))) for own in channels)
    return Member(reached.layer, reached.side, kind_of(reached.module), reached.width, by_unit)


def _tied_parts(module: nn.Module) -> int:
    """Into how many equal parts a layer divides its channels; each part must lose the same positions."""
    if isinstance(module, _ConvNd) and module.groups > 1 and not _is_depthwise(module):
        return module.groups
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        return module.num_groups
    return 1


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _ConvNd) and module.groups > 1 and module.groups in (module.out_channels, module.in_channels)
    )


def kind_of(module: Any) -> str:
    """The kind of a member, by its layer."""
    if isinstance(module, nn.Parameter):
        return "parameter"
    if _is_depthwise(module):
        return "depthwise"
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _BatchNorm | _InstanceNorm):
        return "norm"
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return "mixing_norm"
    if isinstance(module, SelectChannels):
        return "select"
    return "pad" if isinstance(module, ZeroPadChannels) else "other"
