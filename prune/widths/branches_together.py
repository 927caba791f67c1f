"""Plans whose whole branches are measured together: where these lose more than the sum of their single losses, plan again.

Pure arithmetic: what measures the branches together is handed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...network.channels.group import ChannelGroup
from ..plan import PruningPlan, WholeBranches
from .sensitivity import Sensitivity

TOLERANCE = 0.2
"""How far branches removed together may lose more than the plan reckoned, as a share of that, before another plan is made."""
MOST_PLANS = 4


def plan_with_branches_together(
    groups: Sequence[ChannelGroup],
    sensitivity: Sensitivity,
    plan: Callable[[Sensitivity], PruningPlan],
    together: Callable[[Sequence[str]], float],
) -> PruningPlan:
    """Plan by losses, measure the whole branches that the plan removes together, and plan again while they lose more.

    Where the branches of a plan lose more together than the sum of the losses that it was made with, by more than
    ``TOLERANCE``, these losses are multiplied by the ratio and another plan is made, until the sum holds or ``MOST_PLANS`` are
    made. Of all plans made, the one with the least sum of losses is returned, where its branches count as measured together.

    Args:
        plan: makes a plan by losses.
        together: measures the loss, in nats, of removing branches, each named by its last layer.

    Returns:
        The plan, with ``branches`` if it removes any.
    """
    ends = {group.name: group.branch for group in groups if group.branch and group.ends_branch}
    current, tried = sensitivity, list[tuple[bool, float, PruningPlan]]()
    while True:
        found = plan(current)
        kept = {group.name: group.kept for group in found.groups}
        gone = {name: branch for name, branch in ends.items() if kept[name] == 0}
        single, reckoned = (
            sum({branch: losses.loss(name)(0) for name, branch in gone.items()}.values())
            for losses in (sensitivity, current)
        )
        measured = 0.0
        if gone:
            names = tuple(dict.fromkeys(gone.values()))
            measured = together(names)
            found = replace(found, branches=WholeBranches(names, measured, single, 0))
        rest = sum(
            sensitivity.loss(name)(width) for name, width in kept.items() if width and name in sensitivity.curves
        )
        tried.append((bool(found.missed), measured + rest, found))
        if measured <= (1 + TOLERANCE) * reckoned or len(tried) == MOST_PLANS:
            break
        ratio = measured / max(reckoned, 1e-12)
        current = current.with_branch_losses({name: ratio * current.loss(name)(0) for name in gone})
    best = min(tried, key=lambda one: one[:2])[2]
    return replace(best, branches=replace(best.branches, plans=len(tried))) if best.branches else best
