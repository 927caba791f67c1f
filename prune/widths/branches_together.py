"""Plans that remove whole branches: what these lose together is measured, and the plan is made again where it is off.

Pure arithmetic: what measures is handed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...network.channels.group import ChannelGroup
from ..plan import PruningPlan, WholeBranches
from .sensitivity import Sensitivity

TOLERANCE = 0.2
"""How far branches removed together may lose more than the plan reckoned, as a share of that, before another plan is made."""
MOST_PLANS = 4
"""The most plans with whole branches that are made by measured losses."""


@dataclass(frozen=True)
class Measures:
    """Measurements on the network that is planned for, in nats.

    Attributes:
        together: the loss of removing branches, each named by its last layer, with everything else uncut.
        plan_loss: the loss of a plan's cut with every layer behind it fitted, on the same images.
        repaired: the divergence of a plan's cut after the repair that will follow. Takes longest, and decides.
    """

    together: Callable[[Sequence[str]], float]
    plan_loss: Callable[[PruningPlan], float]
    repaired: Callable[[PruningPlan], float]


def plan_with_branches(
    groups: Sequence[ChannelGroup],
    sensitivity: Sensitivity,
    plan: Callable[[Sensitivity], PruningPlan],
    measures: Measures,
) -> PruningPlan:
    """Plan by losses; if whole branches go, measure them, and plan again while they lose more than the plan reckoned.

    1. A plan that removes no branch is returned as it is. Otherwise the best plan that keeps all branches is made too. Losses
       of widths are measured with fewer layers fitted than those of branches, so the losses of branches are multiplied by how
       much more its widths lose one by one than its cut does.
    2. Where the branches of a plan lose more together than it reckoned, by more than ``TOLERANCE``, their losses are multiplied
       by the ratio and another plan is made, until the sum holds, no branch is left or ``MOST_PLANS`` are made.
    3. The one of these whose cut loses least is returned if its repaired cut diverges less than that of the plan that keeps
       all branches.

    Args:
        plan: makes a plan by losses.

    Returns:
        The plan, with ``branches`` if it removes any.
    """
    first = plan(sensitivity)
    ends = {group.name: group.branch for group in groups if group.branch and group.ends_branch}
    if not _gone(first, ends):
        return first
    keeping = plan(sensitivity.without_branches())
    one_by_one = sum(sensitivity.loss(group.name)(group.kept) for group in keeping.groups if not group.locked)
    footing = one_by_one / max(measures.plan_loss(keeping), 1e-12) if one_by_one else 1.0
    tried = list[tuple[bool, float, PruningPlan]]()
    current = sensitivity.with_branch_losses({name: footing * sensitivity.loss(name)(0) for name in ends})
    while len(tried) < MOST_PLANS:
        found = plan(current)
        gone = _gone(found, ends)
        if not gone:
            break
        names = tuple(dict.fromkeys(gone.values()))
        measured, single, reckoned = measures.together(names), _sum(sensitivity, gone), _sum(current, gone)
        losses = {name: current.loss(name)(0) for name in ends}
        found = replace(found, branches=WholeBranches(names, measured, single, 0, losses))
        tried.append((bool(found.missed), measures.plan_loss(found), found))
        ratio = footing * measured / max(reckoned, 1e-12)
        if ratio <= 1 + TOLERANCE:
            break
        current = current.with_branch_losses({name: ratio * current.loss(name)(0) for name in gone})
    if not tried:
        return keeping
    best = min(tried, key=lambda one: one[:2])[2]
    chosen = min(keeping, best, key=lambda one: (bool(one.missed), measures.repaired(one)))
    return replace(chosen, branches=replace(chosen.branches, plans=2 + len(tried))) if chosen.branches else chosen


def plan_as_settled(
    groups: Sequence[ChannelGroup],
    sensitivity: Sensitivity,
    plan: Callable[[Sensitivity], PruningPlan],
    settled: PruningPlan,
    measures: Measures,
) -> PruningPlan:
    """Another plan in a search, by what :func:`plan_with_branches` settled for a similar one: whether branches may go, and the
    losses that they count with. Only a set of branches that was not measured yet is measured.
    """
    if settled.branches is None:
        return plan(sensitivity.without_branches())
    found = plan(sensitivity.with_branch_losses(settled.branches.losses))
    ends = {group.name: group.branch for group in groups if group.branch and group.ends_branch}
    gone = _gone(found, ends)
    if not gone:
        return found
    names = tuple(dict.fromkeys(gone.values()))
    if names == settled.branches.names:
        return replace(found, branches=settled.branches)
    together, single = measures.together(names), _sum(sensitivity, gone)
    return replace(found, branches=replace(settled.branches, names=names, together_nats=together, sum_nats=single))


def _gone(plan: PruningPlan, ends: dict[str, str]) -> dict[str, str]:
    """The branches that a plan removes, by the groups that end them."""
    return {group.name: ends[group.name] for group in plan.groups if group.name in ends and not group.kept}


def _sum(losses: Sensitivity, gone: dict[str, str]) -> float:
    """The sum of the branches' losses, each counted once."""
    return sum({branch: losses.loss(name)(0) for name, branch in gone.items()}.values())
