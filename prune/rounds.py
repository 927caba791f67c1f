"""Several cuts of one network as one plan, in which every unit is numbered as in the original network."""

from collections.abc import Sequence
from dataclasses import replace

from ..common.errors import SecateurError
from ..network.channels.cut import cut_of
from ..network.channels.group import ChannelGroup
from .cost import CostModel
from .plan import GroupPlan, PruningPlan, savings


def combine(
    earlier: PruningPlan,
    step: PruningPlan,
    groups: Sequence[ChannelGroup],
    costs: CostModel,
    *,
    fraction: float,
    number: int,
) -> PruningPlan:
    """Combine a plan for the original network with a plan for the network after that cut.

    Args:
        step: the plan for the network that was cut by ``earlier``; its units are numbered as in that network.
        groups: the groups of the original network.
        costs: the cost model of the original network.
        fraction: the budget after this round, as a fraction of the original.
        number: the round that ``step`` belongs to, from 2.

    Raises:
        SecateurError: the second plan does not fit the network that the first leaves (a defect).
    """
    by_layer = {layer: group for group in step.groups for layer in group.layers}
    gone = {group.name for group in earlier.groups if not group.kept}
    constants = {group.branch for group in groups if group.name in gone}
    merged = tuple(
        _merged(
            group,
            next((by_layer[layer] for layer in group.layers if layer in by_layer), None),
            number,
            made=bool(set(group.layers) - constants),
        )
        for group in earlier.groups
    )
    removed = {group.name: group.removed for group in merged}
    cut = cut_of(groups, removed)
    by_name = {group.name: group for group in groups}
    with_savings = tuple(replace(group, saves=savings(by_name[group.name], group.removed, costs)) for group in merged)
    after = costs.of_cut(cut)
    used = after.of(earlier.resource) / earlier.before.of(earlier.resource)
    missed = ""
    if used > fraction:
        missed = (
            f"{earlier.resource} {fraction:g} was asked for; after {number} rounds, with every group at its narrowest, "
            f"{used:.3f} is left. Locked groups, and one aligned step of every other, are never removed."
        )
    return PruningPlan(
        earlier.resource, fraction, earlier.before, after, missed, with_savings, cut, branches=step.branches
    )


def _merged(first: GroupPlan, second: GroupPlan | None, number: int, made: bool) -> GroupPlan:
    """One group after both cuts. ``made``: whether layers that produce it are left; without any it cannot be cut again."""
    left = [unit for unit in range(first.units) if unit not in set(first.removed)]
    rounds = list(first.rounds) or [1 if unit in set(first.removed) else 0 for unit in range(first.units)]
    if second is None and left and made:
        raise SecateurError(
            f"The group {first.name} is gone after a cut that left {len(left)} of its units. This is a defect."
        )
    if second is None or second.locked:
        return replace(first, rounds=tuple(rounds))
    if second.units != len(left):
        raise SecateurError(
            f"{first.name} has {second.units} units after a cut that left {len(left)}. This is a defect."
        )
    gone = [left[unit] for unit in second.removed]
    scores = list(first.scores)
    for place, unit in enumerate(left):
        scores[unit] = second.scores[place]
    for unit in gone:
        rounds[unit] = number
    return replace(
        first,
        removed=tuple(sorted({*first.removed, *gone})),
        rounds=tuple(rounds),
        scores=tuple(scores),
        decided_by=second.decided_by,
        counted=second.counted,
    )
