"""The ``secateur`` command: parse, call one function, print. Nothing heavy is imported before a command runs."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .errors import ExitCode, SecateurError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from .recipe import Recipe

F = TypeVar("F", bound=Callable[..., Any])

app = typer.Typer(
    help="Cut the kernels a convolutional network does not need, and show why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None,
    typer.Option(help="digits, a torchvision name, timm:NAME, file.py:function, or a folder that secateur wrote."),
]
Weights = Annotated[str | None, typer.Option(help="safetensors or torch checkpoint; or a torchvision weights name.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, a folder with train/ and test/ (or of pictures only), cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, "
        "file.py:function."
    ),
]
Out = Annotated[Path, typer.Option(help="The run folder.")]
InputShape = Annotated[str | None, typer.Option(help="channels,height,width, if the model does not declare it.")]
Mean = Annotated[str | None, typer.Option(help="Channel means of values in [0, 1], with commas.")]
Std = Annotated[str | None, typer.Option(help="Channel standard deviations, with commas.")]
RankBy = Annotated[str | None, typer.Option(help="The ranker; `secateur rankers` lists them.")]
Calibration = Annotated[int | None, typer.Option(help="Training images that rank and repair.")]
Macs = Annotated[float | None, typer.Option(help="MACs that may be left, as a fraction.")]
Params = Annotated[float | None, typer.Option(help="Parameters that may be left, as a fraction.")]
Size = Annotated[float | None, typer.Option(help="Bytes of weights that may be left, as a fraction.")]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Instead of a budget: points of accuracy that may be lost on validation images; as few MACs as can be."
    ),
]
Rounds = Annotated[int | None, typer.Option(help="How often to explain, cut and repair on the way to the budget.")]
RoundTo = Annotated[str | None, typer.Option(help="Widths are multiples of this; auto: 8, 4, 2 or 1 by width.")]
Allocation = Annotated[
    str | None, typer.Option(help="How the cut is shared out: sensitivity (measured) or uniform shares.")
]
Repair = Annotated[str | None, typer.Option(help="none, mean, bn, reconstruct (least squares) or distill.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of fine-tuning with distillation; 0 for none.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate of the fine-tuning.")]
Flip = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Mirror images in fine-tuning (colour images by default).")
]
Provider = Annotated[str | None, typer.Option(help="ONNX Runtime on auto, cpu, cuda or tensorrt.")]
LatencyBatch = Annotated[int | None, typer.Option(help="The batch size whose speed-up is judged.")]
Device = Annotated[str | None, typer.Option(help="torch on auto, cpu or cuda.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything drawn at random.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A recipe.toml; options given beside it win.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and what is wrong.")]


def main() -> None:
    """The console script."""
    app()


def _command(name: str) -> Callable[[F], F]:
    """Register a command whose errors become one readable message and an exit code."""

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                code = function(*args, **kwargs)
            except SecateurError as error:
                typer.echo(f"secateur: {error}", err=True)
                if os.environ.get("SECATEUR_DEBUG"):
                    traceback.print_exc()
                raise typer.Exit(int(error.exit_code)) from error
            except KeyboardInterrupt:
                typer.echo("secateur: stopped. What was finished is kept; --resume goes on from there.", err=True)
                raise
            except MemoryError as error:
                typer.echo(
                    "secateur: the memory of this machine does not suffice. Try a smaller --calibration.", err=True
                )
                raise typer.Exit(int(ExitCode.MACHINE)) from error
            except Exception as error:
                typer.echo(
                    f"secateur: a defect in secateur: {type(error).__name__}: {error}. Please report it with the output of "
                    "the same command under SECATEUR_DEBUG=1.",
                    err=True,
                )
                if os.environ.get("SECATEUR_DEBUG"):
                    traceback.print_exc()
                raise typer.Exit(int(ExitCode.DEFECT)) from error
            raise typer.Exit(int(code or 0))

        app.command(name)(guarded)
        return function

    return wrap


@_command("prune-and-export")
def prune_and_export_command(
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    out: Out = Path("secateur-run"),
    rank_by: RankBy = None,
    macs: Macs = None,
    params: Params = None,
    size: Size = None,
    max_drop: MaxDrop = None,
    rounds: Rounds = None,
    round_to: RoundTo = None,
    allocation: Allocation = None,
    repair: Repair = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    flip: Flip = None,
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
        str | None, typer.Option(help="End with exit code 4 unless this provider runs: cpu, cuda or tensorrt.")
    ] = None,
    latency_batch: LatencyBatch = None,
    provider: Provider = None,
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
    settings = _recipe(
        recipe, None, model=model, weights=weights, data=data, rank_by=rank_by, macs=macs, params=params,
        size=size, max_drop=max_drop, rounds=rounds,
        round_to=_round_to(round_to), allocation=allocation, repair=repair, epochs=epochs,
        learning_rate=learning_rate, flip=flip,
        calibration=calibration, input_shape=_numbers("input-shape", input_shape, int), mean=_numbers("mean", mean, float),
        std=_numbers("std", std, float), require_drop_below=require_drop_below, require_speedup=require_speedup,
        require_size_below=require_size_below, require_provider=require_provider, latency_batch=latency_batch,
        provider=provider, device=device, seed=seed,
    )  # fmt: skip
    console = _console()
    from .export.report import closing_rows
    from .pipeline import prune_and_export
    from .terminal import TerminalObserver, show_table

    result = prune_and_export(settings, out, resume=resume, observer=TerminalObserver(console, quiet))
    show_table(console, ("", "baseline", "pruned", "change (95% interval)"), closing_rows(result.report))
    for gate in result.report["gates"]:
        if gate["verdict"] != "pass":
            console.print(
                f"gate {gate['name']}: {gate['verdict']} ({gate['value']} against {gate['limit']}; {gate['meaning']})"
            )
    console.print(f"report: {out / 'report.html'}", soft_wrap=True, highlight=False)
    return int(result.exit_code)


@_command("explain")
def explain_command(
    pictures: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Pictures whose decisions are explained.")
    ] = None,
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    out: Out = Path("secateur-run"),
    rank_by: RankBy = None,
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
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    quiet: Quiet = False,
) -> None:
    """Score every kernel: writes scores.safetensors and recipe.toml, which `plan`, `prune` and `export` go on from.

    With pictures: the evidence for the network's decision on each, as a tree of kernels and places; writes
    evidence/NAME.json and evidence/NAME.png.
    """
    settings = _recipe(
        recipe, None, model=model, weights=weights, data=data, rank_by=rank_by, calibration=calibration,
        input_shape=_numbers("input-shape", input_shape, int), mean=_numbers("mean", mean, float),
        std=_numbers("std", std, float), device=device, seed=seed,
    )  # fmt: skip
    from .evidence_steps import EvidenceSettings, evidence_settings, explain_pictures
    from .steps import explain_into
    from .terminal import show_table, show_tree

    asked = evidence_settings(class_name, kernel, layers, top, baseline, occlude)
    console, observer = _observed(quiet)
    if not pictures:
        if asked != EvidenceSettings():
            raise UsageError(
                "--class, --kernel, --layers, --top, --baseline and --occlude belong to pictures; name an image."
            )
        rows = explain_into(settings, out, observer)
        show_table(console, ("layer", "kernels", "lowest", "median", "highest"), rows)
        console.print(f"scores: {out / 'scores.safetensors'}", soft_wrap=True, highlight=False)
        return
    if rank_by is not None or calibration is not None:
        raise UsageError("--rank-by and --calibration rank kernels; with pictures nothing is ranked.")
    for tree, path in explain_pictures(settings, pictures, asked, out, observer):
        show_tree(console, tree)
        console.print(f"evidence: {path}", soft_wrap=True, highlight=False)


@_command("plan")
def plan_command(
    out: Out = Path("secateur-run"),
    macs: Macs = None,
    params: Params = None,
    size: Size = None,
    round_to: RoundTo = None,
    allocation: Allocation = None,
    explain: Annotated[
        str | None,
        typer.Option(help="Say for every kernel of this layer why it stays or goes, by the plan that is there."),
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Plan what goes and what stays from the scores in the run folder: writes plan.json.

    What a group removes may be edited in plan.json by hand; `prune` goes by it.
    """
    settings = _recipe(
        None, out, macs=macs, params=params, size=size, round_to=_round_to(round_to), allocation=allocation
    )
    from .steps import explain_plan, plan_into
    from .terminal import show_table

    if explain is not None:
        if any(option is not None for option in (macs, params, size, round_to, allocation)):
            raise UsageError("--explain reads the plan that is there; plan first, then explain.")
        show_table(_console(), ("kernel", "score", "verdict", "why"), explain_plan(settings, out, explain))
        return 0

    console, observer = _observed(quiet)
    plan, rows = plan_into(settings, out, observer)
    show_table(console, ("group", "units", "kept", "step", "saves MACs", "decided by"), rows)
    console.print(f"plan: {out / 'plan.json'}", soft_wrap=True, highlight=False)
    if plan.missed:
        typer.echo(f"secateur: budget missed: {plan.missed}", err=True)
        return int(ExitCode.GATE_FAILED)
    return 0


@_command("prune")
def prune_command(
    out: Out = Path("secateur-run"),
    repair: Repair = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    flip: Flip = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Cut by the plan in the run folder, repair and fine-tune: writes model.safetensors."""
    settings = _recipe(None, out, repair=repair, epochs=epochs, learning_rate=learning_rate, flip=flip, device=device)
    from .steps import prune_into

    console, observer = _observed(quiet)
    for line in prune_into(settings, out, observer):
        console.print(line, soft_wrap=True, highlight=False)


@_command("export")
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
    from .recipe import ModelSettings
    from .steps import export_into

    chosen = None
    if model is not None:
        shape, means, deviations = (
            _numbers("input-shape", input_shape, int),
            _numbers("mean", mean, float),
            _numbers("std", std, float),
        )
        chosen = ModelSettings(model, weights, shape, means, deviations)
    elif weights is not None or input_shape is not None or mean is not None or std is not None:
        raise UsageError("--weights, --input-shape, --mean and --std belong to --model; the run folder has its own.")
    console, observer = _observed(quiet)
    for line in export_into(chosen, out, observer):
        console.print(line, soft_wrap=True, highlight=False)


@_command("bench")
def bench_command(
    baseline: Annotated[Path, typer.Argument(help="An ONNX classifier.")],
    pruned: Annotated[Path, typer.Argument(help="Another, timed in turns with the first.")],
    data: Data = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas.")] = "1,32",
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    provider: Provider = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Latency of two ONNX files, and with --data their accuracy and the drop between them."""
    from .steps import BenchSettings, bench
    from .terminal import show_table

    sizes = _numbers("batches", batches, int)
    assert sizes is not None
    settings = BenchSettings(
        sizes,
        data,
        _numbers("input-shape", input_shape, int),
        _numbers("mean", mean, float),
        _numbers("std", std, float),
        provider or "auto",
        seed or 0,
    )
    console, observer = _observed(quiet)
    show_table(console, ("", "first", "second", "change (95% interval)"), bench(baseline, pruned, settings, observer))


@_command("report")
def report_command(out: Out = Path("secateur-run")) -> None:
    """Write report.md, report.html and junit.xml again from report.json."""
    from .export.report import read_report, write_report

    paths = write_report(read_report(out), out)
    _console().print(f"report: {paths['report.html']}", soft_wrap=True, highlight=False)


@_command("rankers")
def rankers_command() -> None:
    """The rankings there are."""
    from .explain import ranking  # noqa: F401 (registers them)
    from .explain.scores import rankers
    from .terminal import show_table

    rows = [(ranker.name, ranker.summary, ranker.needs, ranker.unit) for ranker in rankers()]
    show_table(_console(), ("name", "higher means", "needs", "unit"), rows)


@_command("doctor")
def doctor_command() -> None:
    """What this machine can and cannot do."""
    from .steps import diagnose
    from .terminal import show_table

    show_table(_console(), ("what", "found", "so"), diagnose())


def _recipe(file: Path | None, folder: Path | None, **options: Any) -> "Recipe":
    """The recipe of ``--recipe`` or of a run folder, with the options given on top."""
    from .recipe import Recipe

    if file is not None:
        from .steps import read_recipe

        base = read_recipe(file)
    elif folder is not None:
        base = Recipe.read(folder / "recipe.toml")
    else:
        base = Recipe()
    if options.get("model") is not None and options["model"] != base.model.model:
        from dataclasses import replace

        from .recipe import ModelSettings

        base = replace(base, model=ModelSettings(options["model"]))
    return base.override(**options)


def _numbers(option: str, text: str | None, kind: type[Any]) -> Any:
    """Comma-separated numbers of an option, or None."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise UsageError(
            f"--{option} must be {'whole ' if kind is int else ''}numbers with commas (got {text!r})."
        ) from error


def _round_to(text: str | None) -> str | int | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--round-to must be auto or a whole number (got {text!r}).") from error


def _console() -> "Console":
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)


def _observed(quiet: bool) -> tuple["Console", Any]:
    from .terminal import TerminalObserver

    console = _console()
    return console, TerminalObserver(console, quiet)


if __name__ == "__main__":
    main()
