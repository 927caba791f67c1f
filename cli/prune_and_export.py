"""``secateur prune-and-export``: the whole job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.errors import ExitCode
from .app import command, console_of
from .options import (
    OUTPUT,
    Allocation,
    AllowAccuracy,
    AllowLatency,
    AllowMacs,
    AllowSize,
    Baseline,
    BaselineLatency,
    Batches,
    BestEffort,
    Calibration,
    CudaGraphs,
    Data,
    Device,
    DropClasses,
    Epochs,
    EvidenceImages,
    EvidenceKernels,
    EvidencePage,
    Flip,
    Input,
    InputShape,
    KeepClasses,
    Latency,
    LatencyBatch,
    LatencyOf,
    LearningRate,
    Macs,
    MaxDrop,
    Mean,
    Misclassified,
    Model,
    Out,
    Output,
    Params,
    PathwayName,
    Precision,
    Provider,
    Quiet,
    RankBy,
    RecipeFile,
    Repair,
    RequireDropBelow,
    RequireProvider,
    RequireSizeBelow,
    RequireSpeedup,
    Resume,
    Rounds,
    RoundTo,
    Seed,
    Size,
    Speedup,
    Std,
    Threads,
    TimeModel,
    TorchTimes,
    Weights,
    chosen_recipe,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..pipeline.prune_and_export import RunResult


@command("prune-and-export")
def prune_and_export_command(
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    output: Output = None,
    calibration: Calibration = None,
    keep_classes: KeepClasses = None,
    drop_classes: DropClasses = None,
    speedup: Speedup = None,
    latency: Latency = None,
    macs: Macs = None,
    max_drop: MaxDrop = None,
    params: Params = None,
    size: Size = None,
    rounds: Rounds = None,
    round_to: RoundTo = None,
    allocation: Allocation = None,
    time_model: TimeModel = None,
    best_effort: BestEffort = None,
    rank_by: RankBy = None,
    epochs: Epochs = None,
    repair: Repair = None,
    learning_rate: LearningRate = None,
    flip: Flip = None,
    pathway: PathwayName = None,
    precisions: Precision = None,
    latency_batch: LatencyBatch = None,
    batches: Batches = None,
    provider: Provider = None,
    threads: Threads = None,
    cuda_graphs: CudaGraphs = None,
    input: Input = None,
    latency_of: LatencyOf = None,
    torch_times: TorchTimes = None,
    require_drop_below: RequireDropBelow = None,
    require_speedup: RequireSpeedup = None,
    require_size_below: RequireSizeBelow = None,
    require_provider: RequireProvider = None,
    baseline: Baseline = None,
    allow_accuracy_regression: AllowAccuracy = None,
    allow_latency_regression: AllowLatency = None,
    allow_size_regression: AllowSize = None,
    allow_macs_regression: AllowMacs = None,
    baseline_latency: BaselineLatency = None,
    out: Out = Path("secateur-run"),
    recipe: RecipeFile = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the inputs, show groups, locks, budget and an estimate of time and memory, then stop.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    page: EvidencePage = None,
    evidence_images: EvidenceImages = None,
    misclassified: Misclassified = None,
    evidence_kernels: EvidenceKernels = None,
    device: Device = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> int:
    """Explain, plan, cut, repair, fine-tune, export, measure and report.

    Exit codes: 0 success; 1 a gate failed or the budget was missed; 2 wrong options; 3 invalid input; 4 the machine lacks a
    requirement; 5 a defect in secateur.
    """
    settings = chosen_recipe(locals(), file=recipe)
    console = console_of()
    from .terminal import TerminalObserver

    observer = TerminalObserver(console, quiet)
    if dry_run:
        from ..pipeline.dry_run import dry_run as look_ahead
        from .terminal import show_dry_run

        found = look_ahead(settings, observer)
        show_dry_run(console, found)
        if found.out_of_reach:
            typer.echo(f"secateur: {found.out_of_reach}", err=True)
            return int(ExitCode.GATE_FAILED)
        return 0
    from ..pipeline import prune_and_export as main_job

    result = main_job.prune_and_export(settings, out, resume=resume, observer=observer)
    _show(console, result, settings.evidence.page)
    return int(result.exit_code)


def _show(console: "Console", result: "RunResult", page: bool) -> None:
    """Print the before/after table, the gates that did not pass, and the paths of the pages."""
    from ..export.report.tables import closing_rows
    from .terminal import show_table

    show_table(console, ("", "baseline", "pruned", "change (95% CI)"), closing_rows(result.report))
    for gate in result.report["gates"]:
        if gate["verdict"] != "pass":
            console.print(
                f"gate {gate['name']}: {gate['verdict']} ({gate['value']} against {gate['limit']}; {gate['meaning']})"
            )
    console.print(f"report: {result.folder / 'report.html'}", soft_wrap=True, highlight=False)
    if page:
        console.print(f"evidence: {result.folder / 'evidence.html'}", soft_wrap=True, highlight=False)
