"""From a network and its images to a smaller network: explain, measure, plan, cut, repair, recover.

Once, in several rounds, or, where a drop is given instead of a budget, in a search over budgets. Every stage is kept by the
hash of its inputs, so that rounds, searches and runs that were stopped share what they have in common.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..common.errors import UsageError
from ..common.files import read_json, write_json
from ..common.progress import Progress
from ..explain.picnn.membership import Membership
from ..explain.scores import KernelScores
from ..network.channels.follow import find_groups
from ..network.channels.group import ChannelGroup
from ..network.evaluation import predict
from ..network.hooks import pick_logits
from ..network.intervals import paired_drop_interval
from ..network.network import Network
from ..network.saved import PLAN_FILE, load_network
from ..network.training import History
from ..prune import surgery
from ..prune.budget_search.by_drop import Search, Trial, search
from ..prune.budget_search.layer_times import LatencyTable
from ..prune.cost import Cost, CostModel, measure_cost
from ..prune.plan import PruningPlan, keep_all, obstacle, plan_pruning
from ..prune.repair.repair import RepairReport
from ..prune.rounds import combine
from ..prune.settings import BudgetSettings
from ..prune.widths.ranking_choice import Choice, choices
from ..prune.widths.sensitivity import Sensitivity
from .inputs import Inputs
from .operations import (
    MEMBERSHIP_FILE,
    SCORES_FILE,
    SENSITIVITY_FILE,
    cut_and_repair,
    explain,
    fine_tune,
    measure,
    ranking_inputs,
    try_plans,
)
from .recipe import Recipe
from .stage_store import Stages


@dataclass(frozen=True)
class Ranked:
    """A network's groups with costs, scores and, where they were asked for, sensitivities; ``key`` hashes what made them."""

    groups: tuple[ChannelGroup, ...]
    costs: CostModel
    scores: KernelScores
    sensitivity: Sensitivity | None
    key: str

    @property
    def choices(self) -> dict[str, Choice]:
        """What a plan may go by: one ranking, or of a consensus each order that stands behind it."""
        return choices(self.groups, self.scores, self.sensitivity)


@dataclass(frozen=True)
class Candidate:
    """A pruned network with the plan from the original to it. ``repairs`` holds one report per round.

    ``repaired`` is the network before it was recovered; ``membership`` that of a recovery with PICNN's pathway.
    """

    plan: PruningPlan
    network: Network
    repairs: tuple[RepairReport, ...]
    history: History | None
    key: str
    repaired: Network
    membership: Membership | None = None


class Pruner:
    """Makes pruned networks of one original, stage by stage."""

    def __init__(self, inputs: Inputs, stages: Stages) -> None:
        self.inputs, self.stages, self.recipe = inputs, stages, inputs.recipe
        with stages.timed("channels"):
            self.groups = find_groups(inputs.network.module, inputs.network.example(2))
            self.costs = measure_cost(inputs.network)
        if reason := obstacle(self.groups, self.recipe.budget.round_to):
            raise UsageError(reason)
        self._first: Ranked | None = None
        self._settled: PruningPlan | None = None
        self._validation: torch.Tensor | None = None

    @property
    def first(self) -> Ranked:
        """The original, ranked."""
        if self._first is None:
            self._first = self._rank(self.inputs.network, self.groups, self.costs, self.inputs.fingerprint, "")
        return self._first

    def prune(
        self, keep: Callable[[Candidate, Trial], None] = lambda tried, trial: None
    ) -> tuple[Candidate, Search | None]:
        """The network that the recipe's budget asks for, and the search that led to it, if a drop was given.

        ``keep`` is called with every try of a search while its network is in memory.
        """
        budget = self.recipe.budget
        if budget.max_drop is None:
            return self.candidate(budget), None
        limit = budget.max_drop
        best: tuple[tuple[float, float], Candidate] | None = None

        def attempt(fraction: float) -> Trial:
            nonlocal best
            tried = self.candidate(budget.of(fraction), f" {fraction:.3f}")
            trial = self._judged(tried, fraction)
            keep(tried, trial)
            if trial.high <= limit and (best is None or trial.rank < best[0]):
                best = trial.rank, tried  # as the search chooses; the other networks need not stay in memory
            return trial

        found = search(attempt, limit)
        return (best[1] if best else self._whole()), found

    def plan_by(self, table: LatencyTable) -> None:
        """Let plans to a latency budget go by a measured table."""
        self.costs, self._first, self._settled = replace(self.costs, times=table), None, None

    def plan_to(self, budget: BudgetSettings, label: str = "") -> PruningPlan:
        """The plan of one cut of the original. The order that the first such plan goes by serves the others as well."""
        plan = self._plan(budget, self.first, None, 1, label, self.inputs.network)
        self._settled = self._settled or plan
        return plan

    def candidate(self, budget: BudgetSettings, label: str = "") -> Candidate:
        """Plan, cut, repair and fine-tune to a budget, in as many rounds as the recipe says."""
        network, ranked, plan = self.inputs.network, self.first, None
        repairs: list[RepairReport] = []
        key = ""
        for index in range(1, budget.rounds + 1):
            suffix = label + (f" round {index}" if index > 1 else "")
            if index > 1:
                groups = find_groups(network.module, network.example(2))
                ranked = self._rank(network, groups, measure_cost(network), key, suffix)
            plan = self._plan(budget, ranked, plan, index, suffix, network)
            network, report = self._cut_and_repair(network, plan, suffix)
            repairs.append(report)
            key = self.stages.keys[f"repair{suffix}"]
        assert plan is not None
        repaired, recovery = network, self.recipe.recovery
        history = membership = None
        if recovery.epochs:
            stage = f"recover{label}"
            network, history, membership = self.stages.run(
                stage,
                {
                    "repair": key,
                    "recovery": asdict(recovery),
                    "picnn": asdict(self.recipe.picnn) if recovery.pathway == "picnn" else None,
                    "images": self.inputs.content["training"],
                },
                lambda folder, progress: _recovered(
                    self.inputs, repaired, plan, folder, progress, self.stages.scratch(stage)
                ),
                lambda folder: (
                    _reload(folder, self.recipe),
                    History.from_json(read_json(folder / "history.json")),
                    Membership.load(folder / MEMBERSHIP_FILE) if recovery.pathway == "picnn" else None,
                ),
            )
            key = self.stages.keys[stage]
        return Candidate(plan, network, tuple(repairs), history, key, repaired, membership)

    def _whole(self) -> Candidate:
        """The original as it is, with the plan that removes nothing."""
        ranked, budget = self.first, self.recipe.budget

        def work(folder: Path, progress: Progress) -> None:
            units = next(iter(ranked.choices.values())).units
            keep_all(ranked.groups, units, ranked.costs, budget).save(folder / PLAN_FILE)

        plan = self.stages.run(
            "plan whole",
            {"ranked": ranked.key, "whole": asdict(budget)},
            work,
            lambda folder: PruningPlan.load(folder / PLAN_FILE),
        )
        report = RepairReport("none", len(self.inputs.calibration))
        network = surgery.cut(self.inputs.network, plan)
        return Candidate(plan, network, (report,), None, self.stages.keys["plan whole"], network)

    def _rank(
        self, network: Network, groups: tuple[ChannelGroup, ...], costs: CostModel, origin: str, suffix: str
    ) -> Ranked:
        recipe, inputs = self.recipe, replace(self.inputs, network=network)
        explained = f"explain{suffix}"

        def work(folder: Path, progress: Progress) -> None:
            explain(inputs, progress, self.stages.scratch(explained)).save(folder / SCORES_FILE)

        scores = self.stages.run(
            explained,
            ranking_inputs(inputs, origin),
            work,
            lambda folder: KernelScores.load(folder / SCORES_FILE),
        )
        key = self.stages.keys[explained]
        if recipe.budget.allocation != "sensitivity":
            return Ranked(groups, costs, scores, None, key)
        measured = f"sensitivity{suffix}"
        sensitivity = self.stages.run(
            measured,
            {"explain": key},
            lambda folder, progress: measure(inputs, groups, scores, progress).save(folder / SENSITIVITY_FILE),
            lambda folder: Sensitivity.load(folder / SENSITIVITY_FILE),
        )
        return Ranked(groups, costs, scores, sensitivity, self.stages.keys[measured])

    def _plan(
        self,
        budget: BudgetSettings,
        ranked: Ranked,
        earlier: PruningPlan | None,
        number: int,
        suffix: str,
        network: Network,
    ) -> PruningPlan:
        """A plan from the original on, for one round; every round goes the same factor towards the budget.

        ``network`` is what the earlier rounds left. Where several orders stand behind the ranking, each one's plan is tried.
        """
        share = number / budget.rounds
        fraction = budget.fraction**share
        target, times = fraction, self.costs.times
        if earlier is not None:
            target *= self.costs.amount(budget.resource) / ranked.costs.amount(budget.resource)

        known, settled = ranked.choices, self._settled
        if settled is not None and settled.order in known:
            known = {settled.order: known[settled.order]}

        def by(choice: Choice) -> PruningPlan:
            groups, units, costs = ranked.groups, choice.units, ranked.costs
            if target < 1 and not obstacle(groups, budget.round_to):
                made_of = {layer: group.step for group in earlier.groups for layer in group.layers} if earlier else {}
                steps = {group.name: made_of[group.name] for group in groups if group.name in made_of}
                step = plan_pruning(groups, units, costs, budget.of(target), choice.sensitivity, steps)
            else:  # an earlier round went far enough, or as far as it goes
                step = keep_all(groups, units, costs, budget)
            if earlier is not None:
                step = combine(earlier, step, self.groups, self.costs, fraction=fraction, number=number)
            return step

        def work(folder: Path, progress: Progress) -> None:
            plans, scratch = {name: by(choice) for name, choice in known.items()}, self.stages.scratch(f"plan{suffix}")
            plan = try_plans(self.inputs, plans, progress, network, scratch)
            if settled is not None and settled.order in known:
                plan = replace(plan, order=settled.order, tried=settled.tried)
            plan.save(folder / PLAN_FILE)

        return self.stages.run(
            f"plan{suffix}",
            {
                "ranked": ranked.key,
                "budget": asdict(budget),
                "share": share,
                "table": times.sha256 if times else None,
                "orders": [*known],
                "repair": asdict(self.recipe.repair),
                "validation": self.inputs.content["validation"],
            },
            work,
            lambda folder: PruningPlan.load(folder / PLAN_FILE),
        )

    def _cut_and_repair(self, network: Network, plan: PruningPlan, suffix: str) -> tuple[Network, RepairReport]:
        def work(folder: Path, progress: Progress) -> None:
            small, report = cut_and_repair(self.inputs, plan, progress, network)
            surgery.save(small, plan, folder)
            write_json(folder / "repair.json", report.to_json())

        return self.stages.run(
            f"repair{suffix}",
            {
                "plan": self.stages.keys[f"plan{suffix}"],
                "repair": asdict(self.recipe.repair),
                "names": (Path(self.recipe.model.model).name, network.class_names),
                "validation": self.inputs.content["validation"],
            },
            work,
            lambda folder: (_reload(folder, self.recipe), RepairReport.from_json(read_json(folder / "repair.json"))),
        )

    def _judged(self, tried: Candidate, fraction: float) -> Trial:
        """The drop of a candidate on validation images."""
        validation, device = self.inputs.splits.validation, self.inputs.device

        def correct(network: Network) -> torch.Tensor:
            module = network.copy().module.to(device)
            return predict(module, validation, device=device, pick=pick_logits).argmax(1) == validation.labels

        def work(folder: Path, progress: Progress) -> None:
            if self._validation is None:
                self._validation = correct(self.inputs.network)
            now = correct(tried.network)
            interval = paired_drop_interval(self._validation.numpy(), now.numpy(), self.recipe.seed)
            points = 100 * float(self._validation.double().mean() - now.double().mean())
            left, plan = shipped_cost(tried), tried.plan
            trial = Trial(fraction, left.macs / plan.before.macs, points, interval.low, interval.high)
            write_json(folder / "trial.json", asdict(trial))

        return self.stages.run(
            f"judge {fraction:.3f}",
            {"candidate": tried.key, "validation": self.inputs.content["validation"]},
            work,
            lambda folder: Trial(**read_json(folder / "trial.json")),
        )


def shipped_cost(candidate: Candidate) -> Cost:
    """What the candidate really costs: its plan's cost, and the biases that a repair added."""
    return measure_cost(candidate.network).of({})


def _recovered(
    inputs: Inputs, small: Network, plan: PruningPlan, folder: Path, progress: Progress, scratch: Path
) -> None:
    tuned, history, membership = fine_tune(inputs, small, progress, scratch)
    surgery.save(tuned, plan, folder)
    if membership is not None:
        membership.save(folder / MEMBERSHIP_FILE)
    write_json(folder / "history.json", history.to_json())


def _reload(folder: Path, recipe: Recipe) -> Network:
    """A stage's network, its factory named as the recipe names it rather than as seen from the stage's folder."""
    network = load_network(folder)
    if Path(recipe.model.model).is_dir():
        return network
    return replace(network, source=replace(network.source, model=recipe.model.model))
