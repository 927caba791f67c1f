"""The ways to make a network so many times as fast: each proposes a cut for a target, and is measured until it is as fast."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.pruning import Bench
from secateur.export.measure.latency import TimingSettings, compare_latencies
from secateur.export.measure.paired_ratio import Ratio
from secateur.export.onnx.model import export_onnx
from secateur.export.onnx.precision import file_name, to_precision
from secateur.network.channels.cut import Cut, cut_of
from secateur.network.network import Network
from secateur.prune import surgery
from secateur.prune.budget_search.by_latency import LatencyTry, search_latency
from secateur.prune.latency_table import LatencyTable
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.judging import judging
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.branch_losses import BranchLosses
from secateur.prune.widths.branches_together import Measures, plan_as_settled, plan_with_branches
from secateur.prune.widths.sensitivity import Sensitivity

PEERS = (("magnitude", "global"), ("taylor", "global"), ("fpgm", "global"))
QUANTISATION_IMAGES = 512


@dataclass(frozen=True)
class Timed:
    """A network's clean baseline file at one batch size and precision, and the table of its operations."""

    baseline: Path
    table: LatencyTable
    batch: int
    precision: str
    settings: TimingSettings


@dataclass(frozen=True)
class Found:
    """A plan that is as fast as asked: its speedup over the clean baseline, with its interval, and all tries."""

    plan: PruningPlan
    speedup: Ratio
    tries: tuple[LatencyTry, ...]


def proposals(bench: Bench, timed: Timed) -> dict[str, Callable[[float], PruningPlan]]:
    """Every way by name: from a target (a fraction of MACs or of time) to a plan."""
    costs = replace(bench.costs, times=timed.table)

    def ours(budget: BudgetSettings, sensitivity: Sensitivity | None, ranker: str = "gap") -> PruningPlan:
        return plan_pruning(bench.groups, bench.units(ranker), costs, budget, sensitivity)

    def with_branches(resource: str) -> Callable[[float], PruningPlan]:
        settled: list[PruningPlan] = []

        def propose(target: float) -> PruningPlan:
            losses = bench.sensitivity("gap")

            def plan(chosen: Sensitivity) -> PruningPlan:
                return ours(BudgetSettings(**{resource: target}), chosen)

            if not settled:
                settled.append(plan_with_branches(bench.groups, losses, plan, measures(bench)))
                return settled[0]
            return plan_as_settled(bench.groups, losses, plan, settled[0], measures(bench))

        return propose

    found: dict[str, Callable[[float], PruningPlan]] = {
        "MACs": with_branches("macs"),
        "time": lambda target: ours(BudgetSettings(latency=target), bench.sensitivity("gap").without_branches()),
        "time, blocks": with_branches("latency"),
        "blocks only": lambda target: blocks_only(bench, timed, target),
        "random": lambda target: ours(BudgetSettings(latency=target), None, "random"),
    }
    for criterion, scope in PEERS:
        found[f"torch-pruning, {criterion}"] = lambda target, by=criterion, scope=scope: planned(
            bench, cut_of(bench.groups, bench.peer(by, scope, target)), target
        )
    return found


def measures(bench: Bench) -> Measures:
    """Measurements for plans that may remove branches, as the line makes them; nothing of the test images is seen."""
    losses = BranchLosses(bench.network, bench.groups, bench.calibration)
    judge = judging(bench.network, bench.splits.validation, bench.seed, "cpu")

    def repaired(plan: PruningPlan) -> float:
        small = surgery.cut(bench.network, plan)
        fixed, _ = repair(bench.network, small, bench.calibration, validation=bench.splits.validation, seed=bench.seed)
        return judge(fixed)

    return Measures(losses.without, lambda plan: losses.of(plan.cut), repaired)


def blocks_only(bench: Bench, timed: Timed, target: float) -> PruningPlan:
    """Whole branches, the least loss for each millisecond first, until the table says that the target is met."""
    costs = replace(bench.costs, times=timed.table)
    losses = bench.sensitivity("gap").curves
    removed: dict[str, Sequence[int]] = {}

    def left(units: Mapping[str, Sequence[int]]) -> float:
        return costs.amount("latency", cut_of(bench.groups, units)) / costs.amount("latency")

    open_ends = [group for group in bench.groups if group.ends_branch and losses[group.name][0][0] == 0]
    while open_ends and left(removed) > target:
        offers = []
        for end in open_ends:
            more = {group.name: range(group.units) for group in bench.groups if group.branch == end.branch}
            saved = left(removed) - left({**removed, **more})
            offers.append((losses[end.name][0][1] / max(saved, 1e-9), end.name, more))
        _, name, more = min(offers, key=lambda offer: offer[:2])
        removed.update(more)
        open_ends = [end for end in open_ends if end.name != name]
    return planned(bench, cut_of(bench.groups, removed), target)


def planned(bench: Bench, cut: Cut, target: float) -> PruningPlan:
    """A plan with nothing but its cut and its costs."""
    return PruningPlan("macs", target, bench.costs.of({}), bench.costs.of_cut(cut), "", (), dict(cut))


def as_fast(bench: Bench, timed: Timed, propose: Callable[[float], PruningPlan], speed: float, folder: Path) -> Found:
    """The slowest plan of a kind that is measured to be so many times as fast as the clean baseline."""
    plans: dict[float, PruningPlan] = {}
    ratios: dict[float, Ratio] = {}

    def attempt(target: float) -> LatencyTry:
        plan = propose(target)
        file = exported(bench, surgery.cut(bench.network, plan), timed.precision, folder / "try.onnx")
        (found,) = compare_latencies(timed.baseline, [file], bench.network.input_shape, timed.batch, timed.settings)
        plans[target], ratios[target] = plan, found.ratio
        return LatencyTry(
            target, target, 1 / found.ratio.ratio, 1 / found.ratio.high, 1 / found.ratio.low, bool(plan.missed)
        )

    searched = search_latency(attempt, 1 / speed)
    target = searched.best.target
    return Found(plans[target], ratios[target], searched.tries)


def exported(bench: Bench, network: Network, precision: str, path: Path, *, clean: bool = True) -> Path:
    """A network's file in a precision, clean unless said otherwise."""
    export_onnx(network, path, clean=clean)
    if precision == "fp32":
        return path
    lower = path.with_name(file_name(path.name, precision))
    to_precision(path, lower, precision, bench.calibration.sample(QUANTISATION_IMAGES, bench.seed))
    return lower
