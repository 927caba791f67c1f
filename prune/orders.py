"""Where several rankings stand behind one: for every group the order of removal that was measured to lose least."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import InputError
from ..explain.ranking import UnitScores, score_units
from ..explain.scores import KernelScores
from ..network.channels import ChannelGroup
from ..network.images import Images
from ..network.model import Network
from ..stages import Progress, in_parts, silent
from .sensitivity import Sensitivity, measure_sensitivity

Units = dict[str, UnitScores]
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
    """Sensitivities of a ranking; of a consensus those of the best order of every group, which ``decided_by`` names.

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
    return replace(first, curves=chosen, decided_by=decided)


def units_by(
    groups: Sequence[ChannelGroup], scores: KernelScores, sensitivity: Sensitivity | None
) -> Mapping[str, UnitScores]:
    """Unit scores of every open group: the ranking's own, or those of the member that a group was measured to lose least by."""
    if sensitivity is None or not sensitivity.decided_by:
        return score_units(groups, scores)
    orders = unit_orders(groups, scores)
    return {group: orders[method][group] for group, method in sensitivity.decided_by.items()}
