"""``secateur train-picnn``: train with PICNN's pathway, or learn which filters belong to which class."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..common.errors import UsageError
from ..explain.settings import PicnnSettings
from .app import command, observed
from .options import (
    Calibration,
    Data,
    Device,
    InputShape,
    Mean,
    Model,
    Out,
    Output,
    Quiet,
    RecipeFile,
    Seed,
    Std,
    Weights,
    chosen_recipe,
    setting_option,
)

PICNN, TRAINING = "PICNN", "Training"


@command("train-picnn")
def train_picnn_command(
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    output: Output = None,
    calibration: Calibration = None,
    post_hoc: Annotated[
        bool,
        typer.Option(
            "--post-hoc",
            help="Learn only the membership of the filters; the network is not changed.",
            rich_help_panel=PICNN,
        ),
    ] = False,
    target: Annotated[str | None, setting_option(PicnnSettings, "target", PICNN)] = None,
    filters: Annotated[int | None, setting_option(PicnnSettings, "filters", PICNN)] = None,
    filters_per_class: Annotated[float | None, setting_option(PicnnSettings, "filters_per_class", PICNN)] = None,
    masks: Annotated[str | None, setting_option(PicnnSettings, "masks", PICNN)] = None,
    weight: Annotated[float | None, setting_option(PicnnSettings, "weight", PICNN)] = None,
    choices: Annotated[
        str | None,
        typer.Option(
            help="Which to follow where they differ: paper or code.",
            rich_help_panel=PICNN,
            show_default="paper",
        ),
    ] = None,
    epochs: Annotated[int | None, setting_option(PicnnSettings, "epochs", TRAINING)] = None,
    batch_size: Annotated[int | None, setting_option(PicnnSettings, "batch_size", TRAINING)] = None,
    learning_rate: Annotated[float | None, setting_option(PicnnSettings, "learning_rate", TRAINING)] = None,
    weight_decay: Annotated[float | None, setting_option(PicnnSettings, "weight_decay", TRAINING)] = None,
    flip: Annotated[bool | None, setting_option(PicnnSettings, "flip", TRAINING, switch=True)] = None,
    out: Out = Path("secateur-picnn"),
    recipe: RecipeFile = None,
    device: Device = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Train a network so that each filter of a late layer belongs to a class (PICNN); or, with --post-hoc, learn which already
    do.

    Writes model.safetensors, membership.safetensors, picnn.json with accuracies with all filters, with clusters and without
    them, and pictures. An interrupted training is resumed by running the same command again.
    """
    # Options of the training share names with those of fine-tuning, which this command does not do.
    own = {"epochs", "batch_size", "learning_rate", "weight_decay", "flip"}
    settings = chosen_recipe({name: value for name, value in locals().items() if name not in own}, file=recipe)
    if post_hoc and any(option is not None for option in (epochs, batch_size, learning_rate, weight_decay, flip)):
        raise UsageError(
            "--post-hoc learns only P. Leave out --epochs, --batch-size, --learning-rate, --weight-decay and --flip, "
            "which are for training."
        )
    console, observer = observed(quiet)
    from ..pipeline.train_picnn import chosen_settings, train_picnn_into
    from .terminal import show_pathways

    picnn = chosen_settings(
        settings.picnn, choices, target=target, filters=filters, filters_per_class=filters_per_class, masks=masks,
        weight=weight, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay,
        flip=flip,
    )  # fmt: skip
    result = train_picnn_into(replace(settings, picnn=picnn), out, observer, post_hoc=post_hoc)
    show_pathways(console, result.rows)
    for path in result.files:
        console.print(str(path), soft_wrap=True, highlight=False)
