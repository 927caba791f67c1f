"""``secateur explain``: scores of all kernels, or the evidence for decisions on pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.errors import UsageError
from .app import command, observed
from .options import (
    Calibration,
    Data,
    Device,
    DropClasses,
    EvidenceImages,
    EvidenceKernels,
    EvidencePage,
    InputShape,
    KeepClasses,
    Mean,
    Misclassified,
    Model,
    Out,
    Output,
    Quiet,
    RankBy,
    RecipeFile,
    Seed,
    Std,
    Weights,
    chosen_recipe,
)

if TYPE_CHECKING:
    from ..explain.scores import KernelScores

PICTURES = "With pictures"
COLUMNS = ("layer", "kernels", "lowest", "median", "highest")


@command("explain")
def explain_command(
    pictures: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Pictures whose decisions are explained.")
    ] = None,
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
    rank_by: RankBy = None,
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class", help="Explain this class (name or index) instead of the predicted one.", rich_help_panel=PICTURES
        ),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="Explain a kernel at a position instead, LAYER:KERNEL:ROW:COLUMN.", rich_help_panel=PICTURES),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers or blocks of the decomposition, separated by commas; by default the stages.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Kernels kept for each decision.", show_default="3", rich_help_panel=PICTURES)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Baseline of a kernel's activation: zero, or mean (over training images of --data).",
            show_default="zero",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    occlude: Annotated[
        list[str] | None,
        typer.Option(
            help="Cover the box LEFT,TOP,RIGHT,BOTTOM (pixels of the input) and measure again; repeatable.",
            rich_help_panel=PICTURES,
        ),
    ] = None,
    out: Out = Path("secateur-run"),
    recipe: RecipeFile = None,
    page: EvidencePage = None,
    evidence_images: EvidenceImages = None,
    misclassified: Misclassified = None,
    evidence_kernels: EvidenceKernels = None,
    device: Device = None,
    seed: Seed = None,
    quiet: Quiet = False,
) -> None:
    """Score every kernel: writes scores.safetensors, recipe.toml and evidence.html, which `plan`, `prune` and `export` use.

    evidence.html shows decisions on a few images, and every kernel with its scores, classes and patches. With pictures:
    explains the network's decision on each as a tree of kernels; writes evidence/NAME.json, evidence/NAME.png and
    evidence/evidence.html.
    """
    settings = chosen_recipe({name: value for name, value in locals().items() if name != "baseline"}, file=recipe)
    from ..pipeline.explain_pictures import EVIDENCE_FOLDER, EvidenceSettings, evidence_settings, explain_pictures
    from ..pipeline.single_commands import explain_into
    from .terminal import show_table, show_tree

    asked = evidence_settings(class_name, kernel, layers, top, baseline, occlude)
    console, observer = observed(quiet)
    if not pictures:
        if asked != EvidenceSettings():
            raise UsageError(
                "--class, --kernel, --layers, --top, --baseline and --occlude apply to pictures only. Name an image."
            )
        show_table(console, COLUMNS, score_rows(explain_into(settings, out, observer)))
        console.print(f"scores: {out / 'scores.safetensors'}", soft_wrap=True, highlight=False)
        if settings.evidence.page:
            console.print(f"evidence: {out / 'evidence.html'}", soft_wrap=True, highlight=False)
        return
    if any(option is not None for option in (rank_by, calibration, keep_classes, drop_classes)):
        raise UsageError(
            "--rank-by, --calibration, --keep-classes and --drop-classes apply to ranking only. Leave them out with pictures."
        )
    if evidence_images is not None or misclassified is not None:
        raise UsageError(
            "--evidence-images and --misclassified choose images. Leave them out with pictures, which are explained instead."
        )
    for tree, path in explain_pictures(settings, pictures, asked, out, observer):
        show_tree(console, tree)
        console.print(f"evidence: {path}", soft_wrap=True, highlight=False)
    if settings.evidence.page:
        console.print(f"page: {out / EVIDENCE_FOLDER / 'evidence.html'}", soft_wrap=True, highlight=False)


def score_rows(scores: "KernelScores") -> list[tuple[str, ...]]:
    """A row for each layer."""
    return [
        (layer, str(len(values)), *(f"{float(values.quantile(share)):.3g}" for share in (0.0, 0.5, 1.0)))
        for layer, values in scores.layers.items()
    ]
