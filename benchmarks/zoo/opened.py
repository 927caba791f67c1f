"""How much of a network secateur can cut, and why not the rest."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from secateur.network.channels.group import ChannelGroup
from secateur.prune.cost import CostModel


def opened(groups: Sequence[ChannelGroup], costs: CostModel) -> dict[str, Any]:
    """The shares of a network's MACs for one image.

    ``opened``: the MACs of layers that produce or read channels of at least one group that is not locked.
    ``lowest``: the MACs that are left when every such group is cut to one unit.
    ``locked``: for every reason, the MACs of layers with no open channels that are in a group locked for that reason; a layer
    in groups of several reasons counts for each.
    """
    whole = costs.whole.macs
    macs = {name: shape.cost(0, 0).macs for name, shape in costs.layers.items()}
    free = {member.layer for group in groups if not group.locked for member in group.members}
    locked: dict[str, set[str]] = defaultdict(set)
    named: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        if group.locked:
            locked[group.locked].update({member.layer for member in group.members} - free)
            named[group.locked].append(group.name)
    reasons = [
        {
            "reason": reason,
            "macs_share": sum(macs.get(layer, 0) for layer in layers) / whole,
            "groups": len(named[reason]),
            "first": named[reason][0],
        }
        for reason, layers in locked.items()
    ]
    return {
        "macs": whole,
        "parameters": costs.whole.parameters,
        "groups": len(groups),
        "open_groups": sum(not group.locked for group in groups),
        "opened": sum(macs.get(layer, 0) for layer in free) / whole,
        "lowest": lowest(groups, costs),
        "locked": sorted(reasons, key=lambda row: -float(str(row["macs_share"]))),
    }


def lowest(groups: Sequence[ChannelGroup], costs: CostModel) -> float:
    """The share of the MACs that is left when every group that is not locked is cut to one unit."""
    removed: Counter[tuple[str, Any]] = Counter()
    for group in groups:
        if not group.locked:
            for member in group.members:
                if member.layer in costs.layers:
                    leaving = {channel for unit in member.channels[1:] for channel in unit}
                    removed[member.layer, member.side] += len(leaving - set(member.channels[0]))
    return costs.of(removed).macs / costs.whole.macs
