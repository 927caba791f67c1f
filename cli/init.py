"""``secateur init``: a commented recipe for a model and a folder of images."""

from pathlib import Path
from typing import Annotated

import typer

from ..common.errors import UsageError
from .app import command, console_of
from .options import (
    OUTPUT,
    Data,
    InputShape,
    Macs,
    Mean,
    Model,
    Output,
    Speedup,
    Std,
    Weights,
    chosen_recipe,
)


@command("init")
def init_command(
    model: Model = None,
    weights: Weights = None,
    data: Data = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    output: Output = None,
    speedup: Speedup = None,
    macs: Macs = None,
    out: Annotated[Path, typer.Option(help="The recipe file to write.", rich_help_panel=OUTPUT)] = Path("recipe.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Write a commented recipe.toml for a model and a folder of images, to edit and pass to `prune-and-export --recipe`.

    The model and the images are loaded once, so that problems show early.
    """
    settings = chosen_recipe(locals())
    if out.exists() and not force:
        raise UsageError(f"{out} already exists. Use --force to replace it, or choose another --out.")
    from ..common.files import write_text
    from ..pipeline.inputs import look_at
    from ..pipeline.recipe.starter import starter
    from .terminal import show_table

    found = look_at(settings)
    write_text(out, starter(settings))
    console = console_of()
    show_table(console, ("", "found"), found)
    console.print(f"recipe: {out}", soft_wrap=True, highlight=False)
    console.print(f"next: secateur prune-and-export --recipe {out} --dry-run", soft_wrap=True, highlight=False)
