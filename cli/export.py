"""``secateur export``: ONNX files of the run folder's networks, or of one named model."""

from pathlib import Path
from typing import Annotated

import typer

from ..common.errors import UsageError
from ..network.settings import ModelSettings
from .app import command, observed
from .options import MODEL, Input, InputShape, Mean, Out, Output, Quiet, Std, Weights, value_of


@command("export")
def export_command(
    model: Annotated[
        str | None,
        typer.Option(help="A network to export unchanged, instead of the run folder's.", rich_help_panel=MODEL),
    ] = None,
    weights: Weights = None,
    input_shape: InputShape = None,
    mean: Mean = None,
    std: Std = None,
    output: Output = None,
    input: Input = None,
    out: Out = Path("secateur-run"),
    quiet: Quiet = False,
) -> None:
    """Write model.onnx from the pruned network in the run folder (and baseline.onnx), or from --model."""
    from ..pipeline.single_commands import export_into

    chosen = None
    if model is not None:
        shape, means, deviations = (
            value_of(name, value) for name, value in (("input_shape", input_shape), ("mean", mean), ("std", std))
        )
        chosen = ModelSettings(model, weights, shape, means, deviations, output)
    elif any(given is not None for given in (weights, input_shape, mean, std, output)):
        raise UsageError(
            "--weights, --input-shape, --mean, --std and --output need --model; the run folder has its own."
        )
    console, observer = observed(quiet)
    for found in export_into(chosen, out, observer, input):
        console.print(
            f"{found.path}: {found.onnx_bytes} bytes, opset {found.opset}, parity with torch "
            f"{found.parity.max_relative_difference:.1e}",
            soft_wrap=True,
            highlight=False,
        )
