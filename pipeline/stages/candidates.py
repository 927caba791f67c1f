"""Pruned networks of one original: by rounds to a budget, and by a search for the largest cut within a drop.

Each stage is stored by the hash of its inputs, so that rounds, searches and resumed runs share common stages.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.files import read_json, write_json
from ...explain.picnn.membership import Membership
from ...network.evaluation import predict
from ...network.hooks import pick_logits
from ...network.intervals import paired_drop_interval
from ...network.network import Network
from ...network.training import History
from ...prune import surgery
from ...prune.budget_search.by_drop import Search, Trial, search
from ...prune.cost import Cost, measure_cost
from ...prune.plan import PruningPlan
from ...prune.repair.repair import RepairReport
from ...prune.settings import BudgetSettings
from ..inputs import Inputs
from .planning import Round, plan_stage, whole_stage
from .ranking import Ranked, channels_of, rank
from .recovering import pathways_stage, recover_stage
from .repairing import repair_stage
from .store import Stage, StageStore, Workplace


@dataclass(frozen=True)
class Candidate:
    """A pruned network with the plan from the original to it. ``repairs`` holds one report per round.

    ``repaired`` is the network before fine-tuning; ``membership`` is from fine-tuning with PICNN's pathway; ``key`` is a hash
    of everything that determines the network.
    """

    plan: PruningPlan
    network: Network
    repairs: tuple[RepairReport, ...]
    history: History | None
    key: str
    repaired: Network
    membership: Membership | None = None


class Candidates:
    """Creates pruned networks from one ranked original, stage by stage."""

    def __init__(self, inputs: Inputs, ranked: Ranked, store: StageStore) -> None:
        self.inputs, self.ranked, self.store = inputs, ranked, store
        self._settled: PruningPlan | None = None
        self._planned: dict[BudgetSettings, tuple[str, PruningPlan]] = {}

    def plan_to(self, budget: BudgetSettings, label: str = "") -> PruningPlan:
        """The plan of one cut of the original. What the first such plan settled is reused for the others."""
        stage = self._plan_stage(budget, Round(1, self.ranked), label)
        plan = self.store.run(stage)
        self._planned[budget] = stage.key, plan
        self._settled = self._settled or plan
        return plan

    def make(self, budget: BudgetSettings, label: str = "") -> Candidate:
        """Plan, cut, repair and fine-tune to a budget, in the budget's number of rounds."""
        inputs, store = self.inputs, self.store
        ranked, plan, network, key = self.ranked, None, inputs.network, ""
        repairs: list[RepairReport] = []
        for number in range(1, budget.rounds + 1):
            suffix = label + (f" round {number}" if number > 1 else "")
            if number > 1:
                ranked = rank(inputs, channels_of(network, key), store, suffix)
            if number == 1 and budget in self._planned:  # the plan that was timed
                planned_key, plan = self._planned[budget]
            else:
                planned = self._plan_stage(budget, Round(number, ranked, plan), suffix)
                planned_key, plan = planned.key, store.run(planned)
            repaired = repair_stage(inputs, plan, planned_key, network, suffix)
            network, report = store.run(repaired)
            repairs.append(report)
            key = repaired.key
        assert plan is not None
        if not inputs.recipe.recovery.epochs:
            return Candidate(plan, network, tuple(repairs), None, key, network)
        stage = recover_stage(inputs, network, plan, key, label)
        found = store.run(stage)
        return Candidate(plan, found.network, tuple(repairs), found.history, stage.key, network, found.membership)

    def whole(self) -> Candidate:
        """The unchanged original, with the plan that removes nothing."""
        stage = whole_stage(self.ranked, self.inputs.recipe.budget)
        plan = self.store.run(stage)
        network = surgery.cut(self.inputs.network, plan)
        return Candidate(plan, network, (RepairReport("none", len(self.inputs.calibration)),), None, stage.key, network)

    def _plan_stage(self, budget: BudgetSettings, current: Round, label: str) -> Stage[PruningPlan]:
        return plan_stage(self.inputs, self.ranked.channels, budget, current, self._settled, label)


def search_by_drop(
    candidates: Candidates, max_drop: float, keep: Callable[[Candidate, Trial], None]
) -> tuple[Candidate, Search]:
    """The candidate with the fewest MACs whose drop on validation images stays within ``max_drop`` points, and the search.

    ``keep`` is called with every candidate while its network is in memory. If none stays within the limit, the original is
    returned.
    """
    budget = candidates.inputs.recipe.budget
    baseline: list[Tensor] = []
    best: tuple[tuple[float, float], Candidate] | None = None

    def attempt(fraction: float) -> Trial:
        nonlocal best
        tried = candidates.make(budget.of(fraction), f" {fraction:.3f}")
        trial = candidates.store.run(judge_stage(candidates.inputs, tried, fraction, baseline))
        keep(tried, trial)
        if trial.high <= max_drop and (best is None or trial.rank < best[0]):
            best = trial.rank, tried  # the same choice as the search's; other networks need not stay in memory
        return trial

    found = search(attempt, max_drop)
    return (best[1] if best else candidates.whole()), found


def judge_stage(inputs: Inputs, tried: Candidate, fraction: float, baseline: list[Tensor]) -> Stage[Trial]:
    """The drop of a candidate on validation images.

    Args:
        baseline: caches which images the original classifies correctly, for the other candidates.
    """
    validation, device = inputs.splits.validation, inputs.device

    def correct(network: Network) -> Tensor:
        module = network.copy().module.to(device)
        return predict(module, validation, device=device, pick=pick_logits).argmax(1) == validation.labels

    def work(place: Workplace) -> None:
        if not baseline:
            baseline.append(correct(inputs.network))
        before, after = baseline[0], correct(tried.network)
        interval = paired_drop_interval(before.numpy(), after.numpy(), inputs.recipe.seed)
        points = 100 * float(before.double().mean() - after.double().mean())
        left = shipped_cost(tried).macs / tried.plan.before.macs
        trial = Trial(fraction, left, points, interval.low, interval.high)
        write_json(place.folder / "trial.json", asdict(trial))

    def load(folder: Path) -> Trial:
        return Trial(**read_json(folder / "trial.json"))

    about = {"candidate": tried.key, "validation": inputs.content["validation"]}
    return Stage(f"judge {fraction:.3f}", about, work, load)


def shipped_cost(candidate: Candidate) -> Cost:
    """The actual cost of the candidate: its plan's cost, plus biases that a repair added."""
    return measure_cost(candidate.network).of({})


def measure_recovery(inputs: Inputs, candidate: Candidate, store: StageStore) -> list[dict[str, Any]] | None:
    """The change of PICNN's measures by fine-tuning with its pathway; None without such fine-tuning."""
    if candidate.membership is None:
        return None
    recovered = (candidate.network, candidate.membership)
    return store.run(pathways_stage(inputs, candidate.repaired, recovered, candidate.key))
