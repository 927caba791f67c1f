"""The ``secateur`` command: parse, call one function, print. Nothing heavy is imported before a command runs."""

from pathlib import Path
from typing import Annotated

import typer

from ..common.errors import ExitCode, UsageError
from . import training as cli_training  # noqa: F401 (it registers commands)
from .options import (
    Allocation,
    AllowAccuracy,
    AllowLatency,
    AllowMacs,
    AllowSize,
    Baseline,
    BaselineLatency,
    Batches,
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
    InputShape,
    KeepClasses,
    Latency,
    LatencyBatch,
    LearningRate,
    Macs,
    MaxDrop,
    Mean,
    Misclassified,
    Model,
    Out,
    Params,
    PathwayName,
    Precision,
    Provider,
    Quiet,
    RankBy,
    RecipeFile,
    Repair,
    Rounds,
    RoundTo,
    Seed,
    Size,
    Std,
    Threads,
    Weights,
    app,
    command,
    console_of,
    names,
    numbers,
    observed,
    recipe_of,
    rounding,
)


def main() -> None:
    """The console script."""
    app()


@command("prune-and-export")
def prune_and_export_command(
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    out: Out = Path("secateur-run"),
    rank_by: RankBy = None,
    macs: Macs = None,
    params: Params = None,
    size: Size = None,
    latency: Latency = None,
    max_drop: MaxDrop = None,
    rounds: Rounds = None,
    round_to: RoundTo = None,
    allocation: Allocation = None,
    repair: Repair = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    flip: Flip = None,
    pathway: PathwayName = None,
    keep_classes: KeepClasses = None,
    drop_classes: DropClasses = None,
    calibration: Calibration = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    require_drop_below: Annotated[
        float | None, typer.Option(help="Fail unless the drop's upper bound is below this many points.")
    ] = None,
    require_speedup: Annotated[
        float | None, typer.Option(help="Fail unless the speed-up's lower bound reaches this.")
    ] = None,
    require_size_below: Annotated[
        float | None, typer.Option(help="Fail unless model.onnx has fewer megabytes than this.")
    ] = None,
    require_provider: Annotated[
        str | None,
        typer.Option(help="End with exit code 4 unless this provider runs: cpu, cuda, tensorrt or openvino."),
    ] = None,
    precisions: Precision = None,
    latency_batch: LatencyBatch = None,
    baseline: Baseline = None,
    allow_accuracy_regression: AllowAccuracy = None,
    allow_latency_regression: AllowLatency = None,
    allow_size_regression: AllowSize = None,
    allow_macs_regression: AllowMacs = None,
    baseline_latency: BaselineLatency = None,
    batches: Batches = None,
    threads: Threads = None,
    cuda_graphs: CudaGraphs = None,
    provider: Provider = None,
    page: EvidencePage = None,
    evidence_images: EvidenceImages = None,
    misclassified: Misclassified = None,
    evidence_kernels: EvidenceKernels = None,
    device: Device = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take finished stages from the run folder.")] = False,
    recipe: RecipeFile = None,
    quiet: Quiet = False,
) -> int:
    """Explain, plan, cut, repair, fine-tune, export, measure and report.

    Exit codes: 0 all is well; 1 a gate failed or the budget was missed; 2 usage; 3 bad input; 4 the machine lacks what was
    required; 5 a defect in secateur.
    """
    settings = recipe_of(
        recipe, None, model=model, weights=weights, data=data, rank_by=rank_by, macs=macs, params=params,
        size=size, latency=latency, max_drop=max_drop, rounds=rounds,
        round_to=rounding(round_to), allocation=allocation, repair=repair, epochs=epochs,
        learning_rate=learning_rate, flip=flip, pathway=pathway, keep_classes=names(keep_classes),
        drop_classes=names(drop_classes),
        calibration=calibration, input_shape=numbers("input-shape", input_shape, int), mean=numbers("mean", mean, float),
        std=numbers("std", std, float), require_drop_below=require_drop_below, require_speedup=require_speedup,
        require_size_below=require_size_below, require_provider=require_provider, latency_batch=latency_batch,
        page=page, evidence_images=evidence_images,
        misclassified=misclassified, evidence_kernels=evidence_kernels,
        baseline=baseline, allow_accuracy_regression=allow_accuracy_regression,
        allow_latency_regression=allow_latency_regression, allow_size_regression=allow_size_regression,
        allow_macs_regression=allow_macs_regression, baseline_latency=baseline_latency,
        provider=provider, device=device, seed=seed, precisions=names(precisions), threads=threads, cuda_graphs=cuda_graphs,
        batches=numbers("batches", batches, int),
    )  # fmt: skip
    console = console_of()
    from ..export.report.report import closing_rows
    from ..pipeline.prune_and_export import prune_and_export
    from .terminal import TerminalObserver, show_table

    result = prune_and_export(settings, out, resume=resume, observer=TerminalObserver(console, quiet))
    show_table(console, ("", "baseline", "pruned", "change (95% interval)"), closing_rows(result.report))
    for gate in result.report["gates"]:
        if gate["verdict"] != "pass":
            console.print(
                f"gate {gate['name']}: {gate['verdict']} ({gate['value']} against {gate['limit']}; {gate['meaning']})"
            )
    console.print(f"report: {out / 'report.html'}", soft_wrap=True, highlight=False)
    if settings.evidence.page:
        console.print(f"evidence: {out / 'evidence.html'}", soft_wrap=True, highlight=False)
    return int(result.exit_code)


@command("explain")
def explain_command(
    pictures: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Pictures whose decisions are explained.")
    ] = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    out: Out = Path("secateur-run"),
    rank_by: RankBy = None,
    keep_classes: KeepClasses = None,
    drop_classes: DropClasses = None,
    calibration: Calibration = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="With IMAGE: explain this class (name or index), not the one predicted."),
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="With IMAGE: explain a kernel at a place instead, LAYER:KERNEL:ROW:COLUMN.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="With IMAGE: layers or blocks to go through, with commas; the stages by default.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="With IMAGE: kernels kept for each decision (3).")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="With IMAGE: what a kernel is compared with: zero (the default), or its mean over training images of --data."
        ),
    ] = None,
    occlude: Annotated[
        list[str] | None,
        typer.Option(
            help="With IMAGE: cover LEFT,TOP,RIGHT,BOTTOM (pixels of the input) and measure again; repeatable."
        ),
    ] = None,
    page: EvidencePage = None,
    evidence_images: EvidenceImages = None,
    misclassified: Misclassified = None,
    evidence_kernels: EvidenceKernels = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    quiet: Quiet = False,
) -> None:
    """Score every kernel: writes scores.safetensors and recipe.toml, which `plan`, `prune` and `export` go on from.

    And evidence.html, a page to look at: decisions on a few images, every kernel with its scores, classes and patches.
    With pictures: the evidence for the network's decision on each, as a tree of kernels and places; writes
    evidence/NAME.json, evidence/NAME.png and evidence/evidence.html.
    """
    settings = recipe_of(
        recipe, None, model=model, weights=weights, data=data, rank_by=rank_by, calibration=calibration,
        keep_classes=names(keep_classes), drop_classes=names(drop_classes),
        input_shape=numbers("input-shape", input_shape, int), mean=numbers("mean", mean, float),
        std=numbers("std", std, float), device=device, seed=seed, page=page, evidence_images=evidence_images,
        misclassified=misclassified, evidence_kernels=evidence_kernels,
    )  # fmt: skip
    from ..export.evidence.page import EVIDENCE_PAGE
    from ..pipeline.explain_pictures import EVIDENCE_FOLDER, EvidenceSettings, evidence_settings, explain_pictures
    from ..pipeline.steps import explain_into
    from .terminal import show_table, show_tree

    asked = evidence_settings(class_name, kernel, layers, top, baseline, occlude)
    console, observer = observed(quiet)
    if not pictures:
        if asked != EvidenceSettings():
            raise UsageError(
                "--class, --kernel, --layers, --top, --baseline and --occlude belong to pictures; name an image."
            )
        rows = explain_into(settings, out, observer)
        show_table(console, ("layer", "kernels", "lowest", "median", "highest"), rows)
        console.print(f"scores: {out / 'scores.safetensors'}", soft_wrap=True, highlight=False)
        if settings.evidence.page:
            console.print(f"evidence: {out / 'evidence.html'}", soft_wrap=True, highlight=False)
        return
    if any(option is not None for option in (rank_by, calibration, keep_classes, drop_classes)):
        raise UsageError(
            "--rank-by, --calibration, --keep-classes and --drop-classes rank kernels; with pictures nothing is ranked."
        )
    if evidence_images is not None or misclassified is not None:
        raise UsageError("--evidence-images and --misclassified choose images; with pictures those are explained.")
    for tree, path in explain_pictures(settings, pictures, asked, out, observer):
        show_tree(console, tree)
        console.print(f"evidence: {path}", soft_wrap=True, highlight=False)
    if settings.evidence.page:
        console.print(f"page: {out / EVIDENCE_FOLDER / EVIDENCE_PAGE}", soft_wrap=True, highlight=False)


@command("plan")
def plan_command(
    out: Out = Path("secateur-run"),
    macs: Macs = None,
    params: Params = None,
    size: Size = None,
    latency: Latency = None,
    round_to: RoundTo = None,
    allocation: Allocation = None,
    latency_batch: LatencyBatch = None,
    provider: Provider = None,
    explain: Annotated[
        str | None,
        typer.Option(help="Say for every kernel of this layer why it stays or goes, by the plan that is there."),
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Plan what goes and what stays from the scores in the run folder: writes plan.json.

    What a group removes may be edited in plan.json by hand; `prune` goes by it.
    """
    settings = recipe_of(
        None, out, macs=macs, params=params, size=size, latency=latency, round_to=rounding(round_to),
        allocation=allocation, latency_batch=latency_batch, provider=provider,
    )  # fmt: skip
    from ..pipeline.steps import explain_plan, plan_into
    from .terminal import show_table

    if explain is not None:
        if any(option is not None for option in (macs, params, size, latency, round_to, allocation)):
            raise UsageError("--explain reads the plan that is there; plan first, then explain.")
        show_table(console_of(), ("kernel", "score", "verdict", "why"), explain_plan(settings, out, explain))
        return 0

    console, observer = observed(quiet)
    plan, rows = plan_into(settings, out, observer)
    show_table(console, ("group", "units", "kept", "step", "saves MACs", "decided by"), rows)
    console.print(f"plan: {out / 'plan.json'}", soft_wrap=True, highlight=False)
    if plan.missed:
        typer.echo(f"secateur: budget missed: {plan.missed}", err=True)
        return int(ExitCode.GATE_FAILED)
    return 0


@command("prune")
def prune_command(
    out: Out = Path("secateur-run"),
    repair: Repair = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    flip: Flip = None,
    pathway: PathwayName = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Cut by the plan in the run folder, repair and fine-tune: writes model.safetensors."""
    settings = recipe_of(
        None, out, repair=repair, epochs=epochs, learning_rate=learning_rate, flip=flip, pathway=pathway, device=device
    )
    from ..pipeline.steps import prune_into

    console, observer = observed(quiet)
    for line in prune_into(settings, out, observer):
        console.print(line, soft_wrap=True, highlight=False)


@command("export")
def export_command(
    model: Annotated[
        str | None, typer.Option(help="A network to export as it is, instead of the run folder's.")
    ] = None,
    weights: Weights = None,
    out: Out = Path("secateur-run"),
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    quiet: Quiet = False,
) -> None:
    """Write model.onnx from the pruned network in the run folder (and baseline.onnx), or from --model."""
    from ..network.settings import ModelSettings
    from ..pipeline.steps import export_into

    chosen = None
    if model is not None:
        shape, means, deviations = (
            numbers("input-shape", input_shape, int),
            numbers("mean", mean, float),
            numbers("std", std, float),
        )
        chosen = ModelSettings(model, weights, shape, means, deviations)
    elif weights is not None or input_shape is not None or mean is not None or std is not None:
        raise UsageError("--weights, --input-shape, --mean and --std belong to --model; the run folder has its own.")
    console, observer = observed(quiet)
    for line in export_into(chosen, out, observer):
        console.print(line, soft_wrap=True, highlight=False)


@command("bench")
def bench_command(
    baseline: Annotated[Path, typer.Argument(help="An ONNX classifier.")],
    pruned: Annotated[Path, typer.Argument(help="Another, timed in turns with the first.")],
    data: Data = None,
    batches: Batches = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    provider: Provider = None,
    threads: Threads = None,
    cuda_graphs: CudaGraphs = None,
    seed: Seed = None,
    json: Annotated[Path | None, typer.Option(help="Write everything that was measured into this file.")] = None,
    quiet: Quiet = False,
) -> None:
    """Latency, throughput and memory of two ONNX classifiers, and with --data their accuracy and the drop between them."""
    from ..common.files import write_json
    from .bench import BenchSettings, bench
    from .terminal import show_table

    settings = BenchSettings(
        numbers("batches", batches, int), data, numbers("input-shape", input_shape, int), numbers("mean", mean, float),
        numbers("std", std, float), provider or "auto", seed or 0, threads or 0, bool(cuda_graphs),
    )  # fmt: skip
    console, observer = observed(quiet)
    found = bench(baseline, pruned, settings, observer)
    show_table(console, ("", "first", "second", "change (95% interval)"), found.rows())
    if json is not None:
        write_json(json, found.to_json())


@command("report")
def report_command(
    out: Annotated[
        Path | None, typer.Option(help="The run folder (secateur-run); with --compare: where to write the comparison.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Two run folders or report.json files, laid side by side."),
    ] = None,
) -> None:
    """Write everything that is made from report.json again; or compare two reports: printed, and with --out as files."""
    from ..export.report.report import read_report, write_report
    from ..pipeline.rerun_command import command_of

    console = console_of()
    if compare is None:
        folder = out or Path("secateur-run")
        report = read_report(folder)
        paths = write_report(report, folder, command_of(report["recipe"]))
        console.print(f"report: {paths['report.html']}", soft_wrap=True, highlight=False)
        return
    from ..export.report.compare import compare_reports, write_comparison
    from .terminal import show_table

    first, second = compare
    found = compare_reports(read_report(first), read_report(second), (str(first), str(second)))
    for alarm in found.alarms:
        typer.echo(f"secateur: {alarm}", err=True)
    show_table(console, ("", "first", "second", "change (95% interval)"), found.rows)
    for title, rows in (("gates", found.gates), ("recipe", found.recipes), ("environment", found.environments)):
        if rows:
            show_table(console, ("", "first", "second"), rows, title)
    if out is not None:
        for path in write_comparison(found, out):
            console.print(f"comparison: {path}", soft_wrap=True, highlight=False)


@command("rankers")
def rankers_command() -> None:
    """The rankings there are."""
    from ..explain import ranking  # noqa: F401 (registers them)
    from ..explain.registry import rankers
    from .terminal import show_table

    rows = [(ranker.name, ranker.summary, ranker.needs, ranker.unit) for ranker in rankers()]
    show_table(console_of(), ("name", "higher means", "needs", "unit"), rows)


@command("doctor")
def doctor_command(
    require: Annotated[
        str | None,
        typer.Option(help="End with exit code 4 unless this provider runs: cpu, cuda, tensorrt or openvino."),
    ] = None,
) -> None:
    """What this machine can and cannot do, and the commands that mend it."""
    from .doctor import examine
    from .doctor import require as check
    from .terminal import show_table

    findings = examine()
    show_table(console_of(), ("what", "found", "so"), [(one.name, one.found, one.advice) for one in findings])
    if require is not None:
        check(findings, require)
