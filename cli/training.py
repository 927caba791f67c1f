"""The commands that train: ``train-picnn`` and ``recover``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.errors import UsageError
from .options import (
    Calibration,
    Data,
    Device,
    Epochs,
    Flip,
    InputShape,
    LearningRate,
    Mean,
    Model,
    Out,
    PathwayName,
    Quiet,
    RecipeFile,
    Seed,
    Std,
    Weights,
    command,
    numbers,
    observed,
    recipe_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..pipeline.training_steps import PicnnResult


COLUMNS = ("network", "ACC1, % (95%)", "ACC2, % (95%)", "ACC3, % (95%)", "MIS (95%)", "floor")


@command("train-picnn")
def train_picnn_command(
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    out: Out = Path("secateur-picnn"),
    post_hoc: Annotated[
        bool, typer.Option("--post-hoc", help="Learn the membership of the filters alone; the network stays as it is.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="The layer or block whose filters are told apart; the last in front of the head.")
    ] = None,
    filters: Annotated[
        int | None, typer.Option(help="Put a new layer of so many filters behind the target (the published code: 64).")
    ] = None,
    filters_per_class: Annotated[
        float | None, typer.Option(help="The same, by the number of classes (the paper: 12.8).")
    ] = None,
    masks: Annotated[
        str | None, typer.Option(help="bernoulli (PICNN), gumbel, csg, or std (nothing is learned about classes).")
    ] = None,
    weight: Annotated[
        float | None, typer.Option("--lambda", help="Weight of the interpretation loss (2, as in the paper).")
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="paper or code: whose choices where the two differ (paper).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training (20).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step (128).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Adam's learning rate at the start (0.001).")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of the weights (1e-4); more makes ACC3 fall in short trainings.")
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror images (colour images by default).")
    ] = None,
    calibration: Calibration = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    quiet: Quiet = False,
) -> None:
    """Train a network so that each filter of a late layer keeps to a class (PICNN); or learn which do, --post-hoc.

    Writes model.safetensors, membership.safetensors, picnn.json with accuracies by all filters, by clusters and without them,
    and pictures. A training that was stopped goes on when the same command is given again.
    """
    settings = recipe_of(
        recipe, None, model=model, weights=weights, data=data, calibration=calibration,
        input_shape=numbers("input-shape", input_shape, int), mean=numbers("mean", mean, float),
        std=numbers("std", std, float), device=device, seed=seed,
    )  # fmt: skip
    if post_hoc and any(option is not None for option in (epochs, batch_size, learning_rate, weight_decay, flip)):
        raise UsageError(
            "--post-hoc learns P alone: --epochs, --batch-size, --learning-rate, --weight-decay and --flip belong to training."
        )
    console, observer = observed(quiet)
    from ..pipeline.training_steps import chosen_settings, train_picnn_into

    picnn = chosen_settings(
        settings.picnn, choices, target=target, filters=filters, filters_per_class=filters_per_class, masks=masks,
        weight=weight, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay,
        flip=flip,
    )  # fmt: skip
    _show(console, train_picnn_into(replace(settings, picnn=picnn), out, observer, post_hoc=post_hoc))


@command("recover")
def recover_command(
    out: Out = Path("secateur-run"),
    pathway: PathwayName = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    flip: Flip = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the pruned network in the run folder: writes model.safetensors again, and recovery.json.

    A recovery that was stopped goes on when the same command is given again.
    """
    settings = recipe_of(
        None, out, pathway=pathway, epochs=epochs, learning_rate=learning_rate, flip=flip, device=device
    )
    console, observer = observed(quiet)
    from ..pipeline.training_steps import recover_into

    _show(console, recover_into(settings, out, observer))


def _show(console: "Console", result: "PicnnResult") -> None:
    from .terminal import show_table

    if result.rows:
        narrow = [tuple(cell.replace("% (", " (").replace(" to ", "–") for cell in row) for row in result.rows]
        show_table(console, COLUMNS, narrow)
    for path in result.files:
        console.print(str(path), soft_wrap=True, highlight=False)
