"""A latency budget: a measured table to plan by, and cut networks timed until the measured latency fits."""

from dataclasses import asdict
from pathlib import Path

from ..common.environment import describe_environment
from ..common.files import read_json, sha256_json, write_json
from ..common.progress import Progress, silent
from ..export.measure.latency import Comparison, TimingSettings, compare_latencies
from ..export.measure.latency_table import Conditions, measure_table
from ..export.measure.stopwatch import Stopwatch
from ..export.onnx.model import export_onnx
from ..network.channels.cut import cut_to_json
from ..network.channels.group import ChannelGroup
from ..prune import surgery
from ..prune.budget_search.by_latency import LatencyOutcome, LatencyTry, search_latency
from ..prune.budget_search.layer_times import LatencyTable
from ..prune.cost import CostModel
from ..prune.plan import PruningPlan
from .inputs import Inputs
from .measurement import timing
from .pruner import Candidate, Pruner
from .stage_store import Stages

BASELINE, TABLE = "baseline.onnx", "table.json"


def make_table(
    inputs: Inputs,
    groups: tuple[ChannelGroup, ...],
    costs: CostModel,
    provider: str,
    folder: Path,
    progress: Progress = silent,
    stopwatch: Stopwatch | None = None,
) -> LatencyTable:
    """Export the baseline into ``folder``, measure the table of its layers, and write that beside it."""
    recipe = inputs.recipe
    baseline = export_onnx(inputs.network, folder / BASELINE, {"what": "baseline"})
    conditions = Conditions(provider, recipe.measurement.latency_batch, timing(recipe, provider).used_threads)
    table = measure_table(
        inputs.network,
        groups,
        costs,
        baseline.path,
        conditions,
        recipe.budget.round_to,
        stopwatch=stopwatch,
        progress=progress,
    )
    table.save(folder / TABLE)
    return table


def prune_to_latency(
    pruner: Pruner, stages: Stages, provider: str, stopwatch: Stopwatch | None = None
) -> tuple[Candidate, LatencyOutcome]:
    """The network that is measured to take the recipe's fraction of the baseline's time at the batch size that is judged.

    Every try plans by the table, cuts, exports and times the result in turns with the baseline; nothing is repaired or
    fine-tuned before the widths are settled, as neither changes what a run takes.

    Raises:
        InputError, MachineError: the network cannot be exported, or does not run on the provider.
    """
    inputs, budget = pruner.inputs, pruner.recipe.budget
    assert budget.latency is not None
    settings = timing(pruner.recipe, provider)
    conditions = Conditions(provider, pruner.recipe.measurement.latency_batch, settings.used_threads)

    def work(folder: Path, progress: Progress) -> None:
        make_table(inputs, pruner.groups, pruner.costs, provider, folder, progress, stopwatch)

    table, baseline = stages.run(
        "table",
        {
            "network": inputs.fingerprint,
            "conditions": asdict(conditions),
            "round_to": budget.round_to,
            "environment": describe_environment().to_json(),
        },
        work,
        lambda folder: (LatencyTable.load(folder / TABLE), folder / BASELINE),
    )
    pruner.plan_by(table)

    def attempt(target: float) -> LatencyTry:
        plan = pruner.plan_to(budget.of(target), f" {target:.3f}")
        found = _timed(pruner, stages, plan, baseline, conditions.batch, settings, f"time {target:.3f}")
        planned = pruner.costs.amount("latency", plan.cut) / pruner.costs.amount("latency")
        ratio = found.ratio
        return LatencyTry(target, planned, 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low, bool(plan.missed))

    searched = search_latency(attempt, budget.latency)
    target = searched.best.target
    return pruner.candidate(budget.of(target), f" {target:.3f}"), LatencyOutcome(searched, table)


def _timed(
    pruner: Pruner,
    stages: Stages,
    plan: PruningPlan,
    baseline: Path,
    batch: int,
    settings: TimingSettings,
    stage: str,
) -> Comparison:
    """What a plan's cut takes beside the baseline, as ONNX files."""
    network = pruner.inputs.network

    def work(folder: Path, progress: Progress) -> None:
        small = export_onnx(surgery.cut(network, plan), folder / "candidate.onnx", {"what": "candidate"})
        (found,) = compare_latencies(baseline, [small.path], network.input_shape, batch, settings, progress)
        write_json(folder / "comparison.json", found.to_json())

    return stages.run(
        stage,
        {
            "table": stages.keys["table"],
            "cut": sha256_json(cut_to_json(plan.cut)),
            "how": asdict(settings),
        },
        work,
        lambda folder: Comparison.from_json(read_json(folder / "comparison.json")),
    )
