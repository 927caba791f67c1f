"""The choice among the rankings of a consensus.

One plan uses, in each group, the ranking with the least measured loss; one uses the consensus, and one each of its members. The
plan is kept whose cut, as measured, diverges least from the original.
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
from .branch_losses import measure_branches
from .measure_sensitivity import measure_sensitivity
from .sensitivity import Sensitivity

Units = dict[str, UnitScores]
OWN = "each group's own"
"""The choice in which every group uses the ranking with its least measured loss."""
LEAST = 1e-9
"""Losses below this, in nats, count as equal."""


def unit_orders(groups: Sequence[ChannelGroup], scores: KernelScores) -> dict[str, Units]:
    """Unit scores by ranking and group: of the ranking itself for every unlocked group, of its members where they score it.

    Raises:
        InputError: what :func:`~secateur.explain.unit_scores.score_units` raises for the ranking itself.
    """
    orders = {scores.method: score_units(groups, scores)}
    for method, own in scores.members.items():
        found: Units = {}
        for group in groups:
            try:
                found.update(score_units([group], own))
            except InputError:  # the member scored no layer of this group
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
    """Measure the sensitivities of a ranking, or of every ranking of a consensus.

    Every order is measured by :func:`~secateur.prune.widths.measure_sensitivity.measure_sensitivity` on the same images. For a
    consensus the curves are those of each group's best ranking; ``by_order`` holds those of all. Losses of whole branches
    do not depend on the order, and are measured once.
    """
    orders = unit_orders(groups, scores)
    part = in_parts(progress, ("whole branches", 1), *((method, 1) for method in orders))
    branches = measure_branches(network, groups, images, device=device, progress=part("whole branches"))
    measured = {
        method: measure_sensitivity(
            network,
            [group for group in groups if group.name in units],
            units,
            images,
            device=device,
            branches=branches,
            progress=part(method),
        )
        for method, units in orders.items()
    }
    return measured[scores.method] if len(measured) == 1 else best_orders(measured)


def best_orders(measured: Mapping[str, Sensitivity]) -> Sensitivity:
    """Choose, for each group, the sensitivities of the ranking with the least loss.

    Losses are compared relative to the mean of all rankings at a width, so that every width counts equally; width 0 is left
    out. The first ranking wins ties, and must have every group.
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
    """What a plan is made from: unit scores of every unlocked group, and sensitivities if they were measured."""

    units: Mapping[str, UnitScores]
    sensitivity: Sensitivity | None


def choices(groups: Sequence[ChannelGroup], scores: KernelScores, sensitivity: Sensitivity | None) -> dict[str, Choice]:
    """What plans to a budget can be made from, by name.

    For a single ranking only itself; for a consensus ``OWN`` (if sensitivities were measured), the consensus, and each of its
    members. Groups that a member does not score use the scores of the consensus.
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
    """Choose, among plans to one budget, the one whose cut diverges least from the original; the first wins ties.

    Plans that miss the budget count only if all do. If all plans make the same cut, none is tried. The result names its choice
    in ``order``, and the divergence of every choice in ``tried``.

    Args:
        divergence: a function that cuts and repairs by a plan, and measures the divergence from the original, in nats.
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
