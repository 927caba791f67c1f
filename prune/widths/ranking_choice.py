"""Where several rankings stand behind one: plans by the order that each group loses least by, by the ranking itself, by each
member; the one whose cut is measured to stay nearest to the original goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...common.errors import InputError
from ...common.progress import Progress, in_parts, silent
from ...explain.scores import KernelScores
from ...explain.unit_scores import UnitScores, score_units
from ...network.channels.group import ChannelGroup
from ...network.images.images import Images
from ...network.network import Network
from ..plan import PruningPlan
from .sensitivity import Sensitivity, measure_sensitivity

Units = dict[str, UnitScores]
OWN = "each group's own"
"""The choice in which every group goes by the order that it was measured to lose least by."""
LEAST = 1e-9
"""Losses below this, in nats, are alike."""


def unit_orders(groups: Sequence[ChannelGroup], scores: KernelScores) -> dict[str, Units]:
    """Unit scores by ranking and group: the ranking's own for every open group, its members' for the groups that they score.

    Raises:
        InputError: what :func:`~secateur.explain.ranking.score_units` raises for the ranking itself.
    """
    orders = {scores.method: score_units(groups, scores)}
    for method, own in scores.members.items():
        found: Units = {}
        for group in groups:
            try:
                found.update(score_units([group], own))
            except InputError:  # it scored no layer of this group
                continue
        orders[method] = found
    return orders


def measure_orders(
    network: Network,
    groups: Sequence[ChannelGroup],
    scores: KernelScores,
    images: Images,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Sensitivity:
    """Sensitivities of a ranking; of a consensus those of each group's best order, which ``decided_by`` names, and in
    ``by_order`` those of every order.

    Each order is measured as :func:`~secateur.prune.sensitivity.measure_sensitivity` does, on the same calibration images, with
    its readers reconstructed.
    """
    orders = unit_orders(groups, scores)
    part = in_parts(progress, *((method, 1) for method in orders))
    measured = {
        method: measure_sensitivity(
            network,
            [group for group in groups if group.name in units],
            units,
            images,
            device=device,
            progress=part(method),
        )
        for method, units in orders.items()
    }
    return measured[scores.method] if len(measured) == 1 else best_orders(measured)


def best_orders(measured: Mapping[str, Sensitivity]) -> Sensitivity:
    """Of several rankings' sensitivities, group by group, those of the ranking that loses least.

    What it loses at each width that leaves some units is held against the mean of all rankings there, so that every width
    counts alike; the first of equals decides. The first ranking has every group.
    """
    first = next(iter(measured.values()))
    decided = {}
    for group in first.curves:
        curves = {method: dict(found.curves[group]) for method, found in measured.items() if group in found.curves}
        whole = max(next(iter(curves.values())))
        widths = [kept for kept in next(iter(curves.values())) if 0 < kept < whole]
        means = {kept: sum(curve[kept] + LEAST for curve in curves.values()) / len(curves) for kept in widths}
        decided[group] = min(curves, key=lambda method: sum((curves[method][k] + LEAST) / means[k] for k in widths))
    chosen = {group: measured[method].curves[group] for group, method in decided.items()}
    by_order = {method: found.curves for method, found in measured.items()}
    return replace(first, curves=chosen, decided_by=decided, by_order=by_order)


@dataclass(frozen=True)
class Choice:
    """What a plan is made of: unit scores of every open group, and sensitivities where they were asked for."""

    units: Mapping[str, UnitScores]
    sensitivity: Sensitivity | None


def choices(groups: Sequence[ChannelGroup], scores: KernelScores, sensitivity: Sensitivity | None) -> dict[str, Choice]:
    """What the plans to a budget may go by, by name: a single ranking alone; of a consensus ``OWN`` (where sensitivities were
    measured), the consensus and each of its members. A group that a member does not rank goes by the consensus.
    """
    orders = unit_orders(groups, scores)
    ranked = orders[scores.method]
    if len(orders) == 1:
        return {scores.method: Choice(ranked, sensitivity)}
    everywhere = {method: {**ranked, **units} for method, units in orders.items()}
    if sensitivity is None:
        return {method: Choice(units, None) for method, units in everywhere.items()}
    own = {group: orders[method][group] for group, method in sensitivity.decided_by.items()}
    found = {OWN: Choice(own, sensitivity)}
    for method, units in everywhere.items():
        curves = {**sensitivity.by_order[scores.method], **sensitivity.by_order[method]}
        found[method] = Choice(units, replace(sensitivity, curves=curves, decided_by={}, by_order={}))
    return found


def best_plan(
    plans: Mapping[str, PruningPlan],
    divergence: Callable[[PruningPlan, Progress], float],
    progress: Progress = silent,
) -> PruningPlan:
    """Of plans to one budget by different choices, the one whose cut diverges least; the first of equals.

    Plans that miss the budget count only where all do. Nothing is cut where all plans cut the same. The plan found names its
    choice in ``order``, and in ``tried`` the divergence of each.

    Args:
        divergence: cuts and repairs by a plan, and says how far, in nats, what is left is from the original.
    """
    within = {name: plan for name, plan in plans.items() if not plan.missed} or dict(plans)
    first = next(iter(within.values()))
    if all(dict(plan.cut) == dict(first.cut) for plan in within.values()):
        return first
    part = in_parts(progress, *((name, 1) for name in within))
    tried: dict[str, float] = {}
    for name, plan in within.items():
        same = next((other for other in tried if dict(within[other].cut) == dict(plan.cut)), None)
        tried[name] = divergence(plan, part(name)) if same is None else tried[same]
    order = min(tried, key=tried.__getitem__)
    return replace(within[order], order=order, tried=tried)
