"""The options that commands share, generated from the settings' names and help, and their conversion to a recipe."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..common.errors import InputError, UsageError
from ..common.settings import flag_of, help_of
from ..explain.settings import EvidencePageSettings, RankingSettings
from ..export.settings import GateSettings, MeasurementSettings, ReleaseSettings
from ..network.settings import DataSettings, ModelSettings
from ..prune.settings import BudgetSettings, RecoverySettings, RepairSettings

if TYPE_CHECKING:
    from ..pipeline.recipe.recipe import Recipe

MODEL, BUDGET, RANKING = "Model and data", "Budget", "Ranking"
REPAIR, MEASUREMENT, GATES, OUTPUT = "Repair and recovery", "Measurement", "Gates", "Output"
LISTS = (DataSettings, ModelSettings, MeasurementSettings)
"""Settings with several values, which an option takes separated by commas."""


def setting_option(section: type[Any], name: str, panel: str, *, switch: bool = False) -> Any:
    """The option of a setting: its flag and help, and the default of the recipe."""
    flag = flag_of(section, name)
    flags = f"{flag}/--no-{flag[2:]}" if switch else flag
    usual = next(entry.default for entry in fields(section) if entry.name == name)
    if isinstance(usual, tuple):
        usual = ",".join(map(str, usual))
    shown: str | bool = False if usual is None or switch else str(usual)
    text = help_of(section, name)
    if switch and usual is not None:
        text += f" Default: {'yes' if usual else 'no'}."
    several = "  Separate several with commas." if _is_list(section, name) else ""
    return typer.Option(flags, help=text + several, rich_help_panel=panel, show_default=shown)


def _is_list(section: type[Any], name: str) -> bool:
    return "tuple" in str(get_type_hints(section)[name])


Model = Annotated[str | None, setting_option(ModelSettings, "model", MODEL)]
Weights = Annotated[str | None, setting_option(ModelSettings, "weights", MODEL)]
Data = Annotated[str | None, setting_option(DataSettings, "data", MODEL)]
InputShape = Annotated[str | None, setting_option(ModelSettings, "input_shape", MODEL)]
Mean = Annotated[str | None, setting_option(ModelSettings, "mean", MODEL)]
Std = Annotated[str | None, setting_option(ModelSettings, "std", MODEL)]
Output = Annotated[str | None, setting_option(ModelSettings, "output", MODEL)]
Calibration = Annotated[int | None, setting_option(DataSettings, "calibration", MODEL)]
KeepClasses = Annotated[str | None, setting_option(DataSettings, "keep_classes", MODEL)]
DropClasses = Annotated[str | None, setting_option(DataSettings, "drop_classes", MODEL)]

Speedup = Annotated[float | None, setting_option(BudgetSettings, "speedup", BUDGET)]
Latency = Annotated[float | None, setting_option(BudgetSettings, "latency", BUDGET)]
Macs = Annotated[float | None, setting_option(BudgetSettings, "macs", BUDGET)]
MaxDrop = Annotated[float | None, setting_option(BudgetSettings, "max_drop", BUDGET)]
Params = Annotated[float | None, setting_option(BudgetSettings, "params", BUDGET)]
Size = Annotated[float | None, setting_option(BudgetSettings, "size", BUDGET)]
Rounds = Annotated[int | None, setting_option(BudgetSettings, "rounds", BUDGET)]
RoundTo = Annotated[str | None, setting_option(BudgetSettings, "round_to", BUDGET)]
Allocation = Annotated[str | None, setting_option(BudgetSettings, "allocation", BUDGET)]
TimeModel = Annotated[str | None, setting_option(BudgetSettings, "time_model", BUDGET)]
BestEffort = Annotated[bool | None, setting_option(BudgetSettings, "best_effort", BUDGET, switch=True)]

RankBy = Annotated[str | None, setting_option(RankingSettings, "rank_by", RANKING)]

Repair = Annotated[str | None, setting_option(RepairSettings, "repair", REPAIR)]
Epochs = Annotated[int | None, setting_option(RecoverySettings, "epochs", REPAIR)]
LearningRate = Annotated[float | None, setting_option(RecoverySettings, "learning_rate", REPAIR)]
Flip = Annotated[bool | None, setting_option(RecoverySettings, "flip", REPAIR, switch=True)]
PathwayName = Annotated[str | None, setting_option(RecoverySettings, "pathway", REPAIR)]

Precision = Annotated[str | None, setting_option(MeasurementSettings, "precisions", MEASUREMENT)]
LatencyBatch = Annotated[int | None, setting_option(MeasurementSettings, "latency_batch", MEASUREMENT)]
Batches = Annotated[str | None, setting_option(MeasurementSettings, "batches", MEASUREMENT)]
Provider = Annotated[str | None, setting_option(MeasurementSettings, "provider", MEASUREMENT)]
Threads = Annotated[int | None, setting_option(MeasurementSettings, "threads", MEASUREMENT)]
Input = Annotated[str | None, setting_option(MeasurementSettings, "input", MEASUREMENT)]
LatencyOf = Annotated[str | None, setting_option(MeasurementSettings, "latency_of", MEASUREMENT)]
TorchTimes = Annotated[bool | None, setting_option(MeasurementSettings, "torch_times", MEASUREMENT, switch=True)]
CudaGraphs = Annotated[bool | None, setting_option(MeasurementSettings, "cuda_graphs", MEASUREMENT, switch=True)]

RequireDropBelow = Annotated[float | None, setting_option(GateSettings, "require_drop_below", GATES)]
RequireSpeedup = Annotated[float | None, setting_option(GateSettings, "require_speedup", GATES)]
RequireSizeBelow = Annotated[float | None, setting_option(GateSettings, "require_size_below", GATES)]
RequireProvider = Annotated[str | None, setting_option(GateSettings, "require_provider", GATES)]
Baseline = Annotated[str | None, setting_option(ReleaseSettings, "baseline", GATES)]
AllowAccuracy = Annotated[float | None, setting_option(ReleaseSettings, "allow_accuracy_regression", GATES)]
AllowLatency = Annotated[float | None, setting_option(ReleaseSettings, "allow_latency_regression", GATES)]
AllowSize = Annotated[float | None, setting_option(ReleaseSettings, "allow_size_regression", GATES)]
AllowMacs = Annotated[float | None, setting_option(ReleaseSettings, "allow_macs_regression", GATES)]
BaselineLatency = Annotated[bool | None, setting_option(ReleaseSettings, "baseline_latency", GATES, switch=True)]

Out = Annotated[Path, typer.Option(help="The run folder.", rich_help_panel=OUTPUT)]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="A recipe.toml; options on the command line take precedence.", rich_help_panel=OUTPUT
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Reuse the finished stages in the run folder.", rich_help_panel=OUTPUT)
]
EvidencePage = Annotated[bool | None, setting_option(EvidencePageSettings, "page", OUTPUT, switch=True)]
EvidenceImages = Annotated[int | None, setting_option(EvidencePageSettings, "evidence_images", OUTPUT)]
Misclassified = Annotated[int | None, setting_option(EvidencePageSettings, "misclassified", OUTPUT)]
EvidenceKernels = Annotated[int | None, setting_option(EvidencePageSettings, "evidence_kernels", OUTPUT)]
Device = Annotated[
    str | None,
    typer.Option(help="Device of torch: auto, cpu or cuda.", rich_help_panel=OUTPUT, show_default="auto"),
]
Seed = Annotated[int | None, typer.Option(help="Seed of all random choices.", rich_help_panel=OUTPUT, show_default="0")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and errors.", rich_help_panel=OUTPUT)]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output.", rich_help_panel=OUTPUT)
]


def chosen_recipe(options: Mapping[str, Any], *, file: Path | None = None, folder: Path | None = None) -> "Recipe":
    """The recipe of ``--recipe`` or of a run folder, overridden by options.

    Args:
        options: a command's parameters by name; those that are not settings are ignored.
    """
    from ..pipeline.recipe.recipe import SETTINGS, Recipe

    given = {name: value for name, value in options.items() if name in SETTINGS and value is not None}
    base = read_recipe(file) if file is not None else Recipe.read(folder / "recipe.toml") if folder else Recipe()
    if given.get("model") not in (None, base.model.model):
        base = replace(base, model=ModelSettings(given["model"]))
    return base.override(**{name: value_of(name, value) for name, value in given.items()})


def read_recipe(path: Path) -> "Recipe":
    """Read a recipe file, and check that its ranker exists.

    Raises:
        InputError: the recipe cannot be read, or names an unknown ranker.
    """
    from ..explain.ranking import members_of
    from ..pipeline.recipe.recipe import Recipe

    recipe = Recipe.read(path)
    try:
        members_of(recipe.ranking.rank_by)
    except UsageError as error:
        raise InputError(f"The recipe {path}: {error}") from error
    return recipe


def value_of(name: str, value: Any) -> Any:
    """The value of a setting from its option: several values are separated by commas, and a rounding may be a number."""
    if not isinstance(value, str):
        return value
    if name == "round_to":
        return _rounding(value)
    for section in LISTS:
        hint = str(get_type_hints(section).get(name, ""))
        if "tuple[str" in hint:
            return tuple(part.strip() for part in value.split(",") if part.strip())
        if "tuple" in hint:
            return numbers(flag_of(section, name), value, int if "int" in hint else float)
    return value


def numbers(option: str, text: str | None, kind: type[Any]) -> Any:
    """Comma-separated numbers of an option, or None."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise UsageError(
            f"{option} must be {'whole ' if kind is int else ''}numbers separated by commas (got {text!r})."
        ) from error


def _rounding(text: str) -> str | int:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--round-to must be auto or a whole number (got {text!r}).") from error
