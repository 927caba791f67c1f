"""The stage that plans one cut: which units to remove, by each order of the ranking, and which order to use."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...common.files import read_json, sha256_json, write_json
from ...common.progress import Progress, silent
from ...network.channels.cut import cut_to_json
from ...network.network import Network
from ...network.saved import PLAN_FILE
from ...prune.plan import PruningPlan
from ...prune.planning import keep_all, obstacle, plan_pruning
from ...prune.repair.judging import judging
from ...prune.rounds import combine
from ...prune.settings import BudgetSettings
from ...prune.widths.branch_losses import BranchLosses
from ...prune.widths.branches_together import Measures, plan_as_settled, plan_with_branches
from ...prune.widths.ranking_choice import Choice, best_plan
from ...prune.widths.sensitivity import RUINED, Sensitivity
from ..inputs import Inputs
from .ranking import Channels, Ranked
from .repairing import cut_and_repair
from .store import Stage, Workplace


@dataclass(frozen=True)
class Round:
    """The inputs of one round's plan: its ``number``, the current ranked network, and the ``earlier`` plan that led to it."""

    number: int
    ranked: Ranked
    earlier: PruningPlan | None = None

    @property
    def network(self) -> Network:
        return self.ranked.channels.network


def plan_stage(
    inputs: Inputs,
    whole: Channels,
    budget: BudgetSettings,
    current: Round,
    settled: PruningPlan | None = None,
    label: str = "",
) -> Stage[PruningPlan]:
    """A plan from the original (``whole``) to this round's share of the budget; all rounds cut by the same factor.

    If the ranking has several orders, the plan of each is tried. Of a ``settled`` plan, made for a similar budget, the order
    and the losses of whole branches are reused.
    """
    share = current.number / budget.rounds
    known = current.ranked.choices
    if settled is not None and settled.order in known:
        known = {settled.order: known[settled.order]}

    def work(place: Workplace) -> None:
        measures = measures_of(inputs, whole, current, place.scratch)
        plans = {name: plan_by(choice, whole, budget, current, measures, settled) for name, choice in known.items()}
        plan = try_plans(inputs, plans, place.progress, current.network, place.scratch)
        if settled is not None and settled.order in known:
            plan = replace(plan, order=settled.order, tried=settled.tried)
        plan.save(place.folder / PLAN_FILE)

    times = whole.costs.times
    return Stage(
        f"plan{label}",
        {
            "ranked": current.ranked.key,
            "budget": asdict(budget),
            "share": share,
            "table": times.sha256 if times else None,
            "orders": [*known],
            "branches": None if settled is None else settled.branches and asdict(settled.branches),
            "settled": settled is not None,
            "repair": asdict(inputs.recipe.repair),
            "validation": inputs.content["validation"],
        },
        work,
        load_plan,
    )


def whole_stage(ranked: Ranked, budget: BudgetSettings) -> Stage[PruningPlan]:
    """The plan that removes nothing."""

    def work(place: Workplace) -> None:
        units = next(iter(ranked.choices.values())).units
        keep_all(ranked.channels.groups, units, ranked.channels.costs, budget).save(place.folder / PLAN_FILE)

    return Stage("plan whole", {"ranked": ranked.key, "whole": asdict(budget)}, work, load_plan)


def load_plan(folder: Path) -> PruningPlan:
    """The plan in a stage's folder."""
    return PruningPlan.load(folder / PLAN_FILE)


def measures_of(inputs: Inputs, whole: Channels, current: Round, scratch: Path) -> Measures:
    """Measurements of what this round's network loses without whole branches, or by a plan.

    Args:
        whole: the original.
        scratch: a folder for these inputs only, where every measured loss is stored to resume from.
    """

    def stored(what: Any, measure: Callable[[BranchLosses], float]) -> float:
        kept = scratch / f"loss-{sha256_json(what)[:16]}.json"
        if not kept.is_file():
            groups = current.ranked.channels.groups
            losses = BranchLosses(current.network, groups, inputs.calibration, device=inputs.device)
            write_json(kept, measure(losses))
        return float(read_json(kept))

    diverges = divergence_after_repair(inputs, current.network, scratch)

    def repaired(step: PruningPlan) -> float:
        plan = step
        if current.earlier is not None:  # of the result only the cut is used
            plan = combine(current.earlier, step, whole.groups, whole.costs, fraction=1.0, number=current.number)
        return diverges(plan, silent)

    return Measures(
        lambda branches: stored(sorted(branches), lambda losses: losses.without(branches)),
        lambda plan: stored(cut_to_json(plan.cut), lambda losses: losses.of(plan.cut)),
        repaired,
    )


def plan_by(
    choice: Choice,
    whole: Channels,
    budget: BudgetSettings,
    current: Round,
    measures: Measures,
    settled: PruningPlan | None = None,
) -> PruningPlan:
    """The plan of one round by one order, from the original; whole branches as in a ``settled`` plan, if one is given."""
    channels, earlier = current.ranked.channels, current.earlier
    fraction = budget.fraction ** (current.number / budget.rounds)
    target = fraction
    if earlier is not None:
        target *= whole.costs.amount(budget.resource) / channels.costs.amount(budget.resource)
    if target < 1 and not obstacle(channels.groups, budget.round_to):
        made_of = {layer: group.step for group in earlier.groups for layer in group.layers} if earlier else {}
        steps = {group.name: made_of[group.name] for group in channels.groups if group.name in made_of}

        def plan(losses: Sensitivity | None) -> PruningPlan:
            return plan_pruning(channels.groups, choice.units, channels.costs, budget.of(target), losses, steps)

        if choice.sensitivity is None:
            step = plan(None)
        elif settled is not None:
            step = plan_as_settled(channels.groups, choice.sensitivity, plan, settled, measures)
        else:
            step = plan_with_branches(channels.groups, choice.sensitivity, plan, measures)
    else:  # an earlier round already met the budget, or cannot go further
        step = keep_all(channels.groups, choice.units, channels.costs, budget)
    if earlier is None:
        return step
    return combine(earlier, step, whole.groups, whole.costs, fraction=fraction, number=current.number)


def try_plans(
    inputs: Inputs,
    plans: Mapping[str, PruningPlan],
    progress: Progress = silent,
    start: Network | None = None,
    scratch: Path | None = None,
) -> PruningPlan:
    """Of several plans to one budget, the one whose cut, repaired by the recipe, diverges least from the original.

    The divergence is the KL divergence of the class scores on validation images, as for the steps of a repair; it needs no
    labels. If the recipe distills, only the cheaper steps before distillation are tried.

    Args:
        start: a network in which a part of the plans is already cut; the original if None.
        scratch: a folder for these inputs only, where the divergence of each cut is stored to resume from.
    """
    return best_plan(plans, divergence_after_repair(inputs, start, scratch), progress)


def divergence_after_repair(
    inputs: Inputs, start: Network | None = None, scratch: Path | None = None
) -> Callable[[PruningPlan, Progress], float]:
    """A function from a plan to the divergence from the original of its repaired cut, as :func:`try_plans` measures it."""
    kind = "reconstruct" if inputs.recipe.repair.repair == "distill" else inputs.recipe.repair.repair
    trial = replace(inputs, recipe=inputs.recipe.override(repair=kind))

    @functools.cache  # a single plan needs no comparison
    def judge() -> Callable[[Network], float]:
        return judging(inputs.network, inputs.splits.validation, inputs.recipe.seed, inputs.device)

    def divergence(plan: PruningPlan, part: Progress) -> float:
        kept = scratch / f"{sha256_json(cut_to_json(plan.cut))[:16]}.json" if scratch is not None else None
        if kept is not None and kept.is_file():
            return float(read_json(kept))
        small, _ = cut_and_repair(trial, plan, part, start)
        found = min(judge()(small), RUINED)
        if kept is not None:
            write_json(kept, found)
        return found

    return divergence
