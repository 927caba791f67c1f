"""The stages of a budget of time: a table for planning, and pruned networks timed until the measured latency fits."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...common.environment import describe_environment
from ...common.files import read_json, sha256_json, write_json
from ...common.progress import Progress, silent
from ...export.measure.latency import Comparison, TimingSettings, compare_latencies
from ...export.measure.latency_table import measure_table
from ...export.measure.point_times import Conditions
from ...export.measure.variants import QUANTISATION_IMAGES
from ...export.onnx.model import OnnxModel, export_onnx
from ...export.onnx.precision import file_name, to_precision
from ...network.channels.cut import cut_to_json
from ...network.network import Network
from ...prune import surgery
from ...prune.budget_search.by_latency import LatencyOutcome, LatencyTry, search_latency
from ...prune.latency_table import LatencyTable
from ...prune.plan import PruningPlan
from ..inputs import Inputs
from ..run_folder import BASELINE_ONNX
from .candidates import Candidate, Candidates
from .ranking import Channels
from .store import Stage, StageStore, Workplace

TABLE = "table.json"


@dataclass(frozen=True)
class TimedLayers:
    """A latency table with its baseline file, in the precision that is planned; ``key`` is a hash of everything that determines
    them.
    """

    table: LatencyTable
    baseline: Path
    key: str


def with_times(channels: Channels, timed: TimedLayers | None) -> Channels:
    """The channels with costs that include the table, if there is one."""
    if timed is None:
        return channels
    return replace(channels, costs=replace(channels.costs, times=timed.table))


def time_layers(inputs: Inputs, channels: Channels, provider: str, store: StageStore) -> TimedLayers | None:
    """Time the original's layers at the widths that a plan may choose; None if the budget is not measured time.

    Raises:
        InputError, MachineError: the network cannot be exported, or does not run on the provider.
    """
    if not inputs.recipe.budget.by_time:
        return None
    stage = table_stage(inputs, channels, provider)
    table, baseline = store.run(stage)
    return TimedLayers(table, baseline, stage.key)


def table_stage(inputs: Inputs, channels: Channels, provider: str) -> Stage[tuple[LatencyTable, Path]]:
    """Export the baseline and measure the table of its layers."""

    def work(place: Workplace) -> None:
        make_table(inputs, channels, provider, place.folder, place.progress)

    return Stage(
        "table",
        {
            "network": inputs.fingerprint,
            "conditions": asdict(conditions_of(inputs, provider)),
            "round_to": inputs.recipe.budget.round_to,
            "source": inputs.recipe.budget.time_model,
            **_calibrated(inputs),
            "environment": describe_environment().to_json(),
            "input": inputs.recipe.measurement.input,
        },
        work,
        lambda folder: (LatencyTable.load(folder / TABLE), folder / _planned_name(inputs, BASELINE_ONNX)),
    )


def make_table(
    inputs: Inputs, channels: Channels, provider: str, folder: Path, progress: Progress = silent
) -> LatencyTable:
    """Export the baseline into ``folder``, measure the table of its layers, and write it there too."""
    baseline = _planned_file(inputs, inputs.network, folder / BASELINE_ONNX, provider)
    table = measure_table(
        inputs.network,
        channels.groups,
        channels.costs,
        baseline,
        conditions_of(inputs, provider),
        inputs.recipe.budget.round_to,
        source=inputs.recipe.budget.time_model,
        progress=progress,
    )
    table.save(folder / TABLE)
    return table


def search_by_latency(candidates: Candidates, timed: TimedLayers, provider: str) -> tuple[Candidate, LatencyOutcome]:
    """Find the network whose measured latency is the recipe's fraction of the baseline's, at the batch size of the gates.

    Each try plans by the table, cuts, exports and times the result alternately with the baseline. Repair and fine-tuning come
    only after the widths are fixed, since neither changes the latency.

    Raises:
        InputError, MachineError: the network cannot be exported, or does not run on the provider.
    """
    inputs, costs = candidates.inputs, candidates.ranked.channels.costs
    budget = inputs.recipe.budget

    def attempt(target: float) -> LatencyTry:
        label = f" {target:.3f}"
        plan = candidates.plan_to(budget.of(target), label)
        found = candidates.store.run(timing_stage(inputs, plan, timed, provider, label))
        planned = costs.amount("latency", plan.cut) / costs.amount("latency")
        ratio = found.meant(inputs.recipe.measurement.latency_of)
        return LatencyTry(target, planned, 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low, bool(plan.missed))

    searched = search_latency(attempt, budget.fraction)
    target = searched.best.target
    return candidates.make(budget.of(target), f" {target:.3f}"), LatencyOutcome(searched, timed.table)


def timing_stage(inputs: Inputs, plan: PruningPlan, timed: TimedLayers, provider: str, label: str) -> Stage[Comparison]:
    """The latency of a plan's cut against the baseline, as ONNX files in the precision that is planned."""
    network, settings = inputs.network, timing_settings(inputs, provider)
    batch = inputs.recipe.measurement.latency_batch

    def work(place: Workplace) -> None:
        small = _planned_file(inputs, surgery.cut(network, plan), place.folder / "candidate.onnx", provider)
        (found,) = compare_latencies(timed.baseline, [small], network.input_shape, batch, settings, place.progress)
        write_json(place.folder / "comparison.json", found.to_json())

    return Stage(
        f"time{label}",
        {"table": timed.key, "cut": sha256_json(cut_to_json(plan.cut)), "how": asdict(settings)},
        work,
        lambda folder: Comparison.from_json(read_json(folder / "comparison.json")),
    )


def export_baseline(inputs: Inputs, path: Path, as_exported: Path | None = None) -> OnnxModel:
    """Export the original with the recipe's input; also as torch exports it, if a second path is given."""
    taken = inputs.recipe.measurement.input
    return export_onnx(inputs.network, path, {"what": "baseline"}, input_type=taken, as_exported=as_exported)


def timing_settings(inputs: Inputs, provider: str) -> TimingSettings:
    """How a run's files are timed."""
    how = inputs.recipe.measurement
    return TimingSettings(provider, how.threads, how.cuda_graphs, inputs.recipe.seed)


def conditions_of(inputs: Inputs, provider: str) -> Conditions:
    """The conditions that operations are timed under."""
    how = inputs.recipe.measurement
    return Conditions(
        provider, how.latency_batch, timing_settings(inputs, provider).used_threads, how.planned_precision
    )


def _planned_name(inputs: Inputs, fp32: str) -> str:
    return file_name(fp32, inputs.recipe.measurement.planned_precision)


def _planned_file(inputs: Inputs, network: Network, path: Path, provider: str) -> Path:
    """A network's file in the precision that is planned, with the recipe's input."""
    how = inputs.recipe.measurement
    exported = export_onnx(network, path, {"what": path.stem}, input_type=how.input).path
    if how.planned_precision == "fp32":
        return exported
    lower = path.with_name(_planned_name(inputs, path.name))
    calibration = inputs.calibration.sample(QUANTISATION_IMAGES, inputs.recipe.seed)
    to_precision(exported, lower, how.planned_precision, calibration, provider)
    return lower


def _calibrated(inputs: Inputs) -> dict[str, str]:
    """The images that a lower precision depends on."""
    lower = inputs.recipe.measurement.planned_precision != "fp32"
    return {"calibration": inputs.content["calibration"]} if lower else {}
