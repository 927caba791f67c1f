"""What the commands share: the application, options, and how errors become messages and exit codes.

Nothing heavy is imported before a command runs.
"""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..common.errors import ExitCode, SecateurError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from ..pipeline.recipe import Recipe


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
RankBy = Annotated[str | None, typer.Option(help="The ranker, or several with commas; `secateur rankers` lists them.")]
Calibration = Annotated[int | None, typer.Option(help="Training images that rank and repair.")]
KeepClasses = Annotated[
    str | None,
    typer.Option(help="The classes that matter, with commas: the head is cut to them, only their images are used."),
]
DropClasses = Annotated[str | None, typer.Option(help="The same by the classes that do not matter.")]
Macs = Annotated[float | None, typer.Option(help="MACs that may be left, as a fraction.")]
Params = Annotated[float | None, typer.Option(help="Parameters that may be left, as a fraction.")]
Size = Annotated[float | None, typer.Option(help="Bytes of weights that may be left, as a fraction.")]
Latency = Annotated[
    float | None,
    typer.Option(help="Measured latency of the ONNX file that may be left at --latency-batch, as a fraction."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Instead of a budget: points of accuracy that may be lost on validation images; as few MACs as can be."
    ),
]
Rounds = Annotated[int | None, typer.Option(help="How often to explain, cut and repair on the way to the budget.")]
RoundTo = Annotated[
    str | None, typer.Option(help="Widths are multiples of this; auto: a power of two up to 32, by width.")
]
Allocation = Annotated[
    str | None, typer.Option(help="How the cut is shared out: sensitivity (measured) or uniform shares.")
]
Repair = Annotated[str | None, typer.Option(help="none, mean, bn, reconstruct (least squares) or distill.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs of fine-tuning with distillation; 0 for none.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate of the fine-tuning.")]
PathwayName = Annotated[
    str | None,
    typer.Option(
        "--pathway", help="none, or picnn: fine-tune with PICNN's loss too, so that filters keep to their classes."
    ),
]
Flip = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Mirror images in fine-tuning (colour images by default).")
]
Provider = Annotated[str | None, typer.Option(help="ONNX Runtime on auto, cpu, cuda, tensorrt or openvino.")]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision", help="Ship these too, with commas: fp16, int8 (quantised on calibration images); fp32 always."
    ),
]
Batches = Annotated[str | None, typer.Option(help="Batch sizes that are timed, with commas (1,32).")]
Threads = Annotated[int | None, typer.Option(help="Threads of a timed session on the CPU; 0 for all cores but one.")]
CudaGraphs = Annotated[
    bool | None, typer.Option("--cuda-graphs/--no-cuda-graphs", help="Latency by replayed CUDA graphs.")
]
LatencyBatch = Annotated[int | None, typer.Option(help="The batch size whose speed-up is judged.")]
Device = Annotated[str | None, typer.Option(help="torch on auto, cpu or cuda.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything drawn at random.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A recipe.toml; options given beside it win.")]
EvidencePage = Annotated[
    bool | None, typer.Option("--evidence/--no-evidence", help="Whether evidence.html is written (it is by default).")
]
EvidenceImages = Annotated[int | None, typer.Option(help="Validation images whose decisions evidence.html explains.")]
Misclassified = Annotated[int | None, typer.Option(help="Of those that the network gets wrong, so many more.")]
EvidenceKernels = Annotated[
    int | None,
    typer.Option(help="Kernels of each layer with patches in evidence.html; by default what fits into 20 MB."),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="report.json of the last release (or its folder): fail on regressions; refuse another device, provider or driver."
    ),
]
AllowAccuracy = Annotated[
    float | None, typer.Option("--allow-accuracy-regression", help="Points of accuracy below --baseline, at most (1).")
]
AllowLatency = Annotated[
    float | None, typer.Option("--allow-latency-regression", help="Percent slower than --baseline, at most (10).")
]
AllowSize = Annotated[
    float | None, typer.Option("--allow-size-regression", help="Percent more bytes than --baseline, at most (5).")
]
AllowMacs = Annotated[
    float | None, typer.Option("--allow-macs-regression", help="Percent more MACs than --baseline, at most (5).")
]
BaselineLatency = Annotated[
    bool | None,
    typer.Option(
        "--baseline-latency/--no-baseline-latency",
        help="Compare latency with --baseline too; it needs the same machine.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and what is wrong.")]


def command(name: str) -> Callable[[F], F]:
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
                typer.echo(
                    "secateur: stopped. What was finished is kept; the same command (with --resume, if it has that) goes on "
                    "from there.",
                    err=True,
                )
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


def recipe_of(file: Path | None, folder: Path | None, **options: Any) -> "Recipe":
    """The recipe of ``--recipe`` or of a run folder, with the options given on top."""
    from ..pipeline.recipe import Recipe

    if file is not None:
        from ..pipeline.steps import read_recipe

        base = read_recipe(file)
    elif folder is not None:
        base = Recipe.read(folder / "recipe.toml")
    else:
        base = Recipe()
    if options.get("model") is not None and options["model"] != base.model.model:
        from dataclasses import replace

        from ..network.settings import ModelSettings

        base = replace(base, model=ModelSettings(options["model"]))
    return base.override(**options)


def names(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated names of an option, or None."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(option: str, text: str | None, kind: type[Any]) -> Any:
    """Comma-separated numbers of an option, or None."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise UsageError(
            f"--{option} must be {'whole ' if kind is int else ''}numbers with commas (got {text!r})."
        ) from error


def rounding(text: str | None) -> str | int | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--round-to must be auto or a whole number (got {text!r}).") from error


def console_of() -> "Console":
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)


def observed(quiet: bool) -> tuple["Console", Any]:
    from .terminal import TerminalObserver

    console = console_of()
    return console, TerminalObserver(console, quiet)
