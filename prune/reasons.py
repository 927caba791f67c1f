"""The reason why each kernel of a layer is kept or removed, in words."""

import difflib
from collections.abc import Sequence

from ..common.errors import InputError
from ..network.channels.group import ChannelGroup, Member
from .plan import GroupPlan, PruningPlan


def explain_layer(
    plan: PruningPlan, groups: Sequence[ChannelGroup], layer: str
) -> list[tuple[int, float | None, bool, str]]:
    """Explain the plan for one layer.

    Returns:
        For every kernel (index, score of its unit, whether it is kept, the reason).

    Raises:
        InputError: the plan has no such layer; the message lists those that it has.
    """
    rows: dict[int, tuple[int, float | None, bool, str]] = {}
    width = 0
    for group, decided in ((one, two) for one in groups for two in plan.groups if one.name == two.name):
        for member in (one for one in group.producers if one.layer == layer):
            width = member.width
            rows.update(_explain_member(plan, decided, member, group.branch))
    if rows:
        alone = "no group holds it: its channels are split or rearranged on the way"
        return [rows.get(channel, (channel, None, True, alone)) for channel in range(width)]
    known = [name for group in plan.groups for name in group.layers]
    near = difflib.get_close_matches(layer, known, n=3) or known[:8]
    raise InputError(
        f"The plan has no layer {layer!r}. It has: {', '.join(near)}{', …' if len(near) < len(known) else ''}."
    )


def _explain_member(
    plan: PruningPlan, decided: GroupPlan, member: Member, branch: str
) -> dict[int, tuple[int, float | None, bool, str]]:
    """The rows of those kernels of a layer that a group holds: all of them, unless its channels are split."""
    unit_of = {channel: unit for unit, channels in enumerate(member.channels) for channel in channels}
    if not decided.scores:
        why = f"the group {decided.name} stays whole: {decided.locked.rstrip('.')}"
        return {channel: (channel, None, True, why) for channel in unit_of}
    last = max((max(one.rounds, default=0) for one in plan.groups), default=0)
    compared = [unit for unit in range(decided.units) if not decided.rounds or decided.rounds[unit] in (0, last)]
    order = sorted(compared, key=lambda unit: -decided.scores[unit])
    rank = {unit: place for place, unit in enumerate(order, 1)}
    when = f" in round {last}" if decided.rounds else ""
    others = [name for name in decided.layers if name != member.layer]
    shared = f", cut together with {', '.join(others)}" if others else ""
    removed = set(decided.removed)
    rows: dict[int, tuple[int, float | None, bool, str]] = {}
    for channel, unit in unit_of.items():
        if not decided.kept:
            why = f"the whole branch goes, up to {branch}: measured to lose less than it costs{shared}"
        elif decided.rounds and decided.rounds[unit]:
            why = f"{decided.decided_by} ranked its unit among the lowest in round {decided.rounds[unit]}{shared}"
        else:
            place = f"{rank[unit]} of {len(compared)}{when}"
            why = f"{decided.decided_by} ranks its unit {place}; {decided.kept} stay{shared}"
        rows[channel] = (channel, decided.scores[unit], unit not in removed, why)
    return rows
