"""Planning: which units every group loses under a budget. Pure: no network is run, no device is used."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..common.errors import UsageError
from ..explain.unit_scores import UnitScores
from ..network.channels.cut import cut_of
from ..network.channels.group import ChannelGroup
from .cost import CostModel
from .plan import GroupPlan, PruningPlan, savings
from .settings import BudgetSettings
from .widths.sensitivity import Sensitivity
from .widths.width_book import WidthBook, alignment


def plan_pruning(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, UnitScores],
    costs: CostModel,
    budget: BudgetSettings,
    sensitivity: Sensitivity | None = None,
    steps: Mapping[str, int] | None = None,
) -> PruningPlan:
    """Choose every group's width under a budget, and remove its units with the lowest scores.

    With ``sensitivity`` the widths are those with the least measured loss (:func:`~secateur.prune.widths.allocation.allocate`),
    and whole residual branches may be removed. Without it, every group loses the same share of its units
    (:meth:`~secateur.prune.widths.width_book.WidthBook.by_shares`).

    The cost is never above the budget. If even the narrowest network is above it, the plan is that network, and ``missed``
    says why.

    Args:
        steps: alignments of widths, by group, that an earlier round chose.

    Raises:
        UsageError: nothing can be cut, or ``round_to`` is as wide as every group.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, images.train), "magnitude")
        >>> groups, costs = secateur.find_groups(network.module, network.example()), secateur.measure_cost(network)
        >>> units = secateur.score_units(groups, scores)
        >>> plan = secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.5))
        >>> [(group.name, group.units, group.kept) for group in plan.groups[:2]]  # uniform shares: no sensitivity was given
        [('stem.0', 32, 32), ('block1.conv1', 32, 16)]
    """
    if reason := obstacle(groups, budget.round_to):
        raise UsageError(reason)
    costs = costs.along(groups)
    book = WidthBook(groups, scores, costs, budget, steps)
    kept = book.by_shares() if sensitivity is None else book.by_loss(sensitivity)
    return _plan_of(kept, groups, scores, costs, budget, book)


def keep_all(
    groups: Sequence[ChannelGroup], scores: Mapping[str, UnitScores], costs: CostModel, budget: BudgetSettings
) -> PruningPlan:
    """The plan that removes nothing; only the resource and the alignment of ``budget`` are used."""
    costs = costs.along(groups)
    book = WidthBook(groups, scores, costs, budget)
    return replace(_plan_of(book.whole, groups, scores, costs, budget, book), fraction=1.0, missed="")


def obstacle(groups: Sequence[ChannelGroup], round_to: str | int) -> str:
    """The reason why nothing in these groups can be cut; empty if something can."""
    open_groups = [group for group in groups if not group.locked]
    if not open_groups:
        reasons = "; ".join(f"{group.name}: {group.locked.rstrip('.')}" for group in groups[:3])
        return f"Nothing in this network can be cut. {reasons}."
    if all(group.units <= alignment(group, round_to) for group in open_groups):
        return f"round_to {round_to} is as wide as every layer, so nothing can be cut. Lower it."
    return ""


def _plan_of(
    kept: Mapping[str, int],
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, UnitScores],
    costs: CostModel,
    budget: BudgetSettings,
    book: WidthBook,
) -> PruningPlan:
    """The plan that keeps these widths."""
    removed = book.removed(kept)
    cut = cut_of(groups, removed)
    before, after = costs.of({}), costs.of_cut(cut)
    missed = ""
    table = costs.times.sha256 if budget.resource == "latency" and costs.times else ""
    if book.used(kept) > book.limit:
        missed = (
            f"{budget.resource} {budget.fraction:g} was asked for; with every group at its narrowest "
            f"{book.used(kept) / book.used(book.whole):.3f} is left. Locked groups, and one aligned step of "
            "every other, are never removed."
        )
    rows = []
    for group in groups:
        layers = tuple(member.layer for member in group.producers)
        if group.locked:
            rows.append(GroupPlan(group.name, layers, group.units, (), 1, before - before, "", (), (), group.locked))
            continue
        found = scores[group.name]
        rows.append(
            GroupPlan(
                group.name,
                layers,
                group.units,
                removed[group.name],
                book.steps[group.name],
                savings(group, removed[group.name], costs),
                found.method,
                found.counted,
                tuple(float(f"{value:.8g}") for value in found.values.tolist()),
                "",
            )
        )
    return PruningPlan(budget.resource, budget.fraction, before, after, missed, tuple(rows), cut, table)
