"""The single commands: parts of a run, each on the files in the run folder from the previous one.

They run the stages of the main job. The finished stages of an interrupted command are kept in ``.secateur/COMMAND``, are
reused when the same command is run again, and are removed once it is done.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.environment import describe_environment
from ..common.errors import InputError, UsageError
from ..common.files import locked_folder, sha256_file, sha256_json, write_json
from ..common.progress import Observer
from ..explain.ranking import members_of
from ..explain.scores import KernelScores
from ..export.onnx.model import OnnxModel, export_onnx
from ..export.runtime.provider_choice import choose_provider
from ..network.channels.cut import apply_cut
from ..network.load import load_model
from ..network.network import Network, fingerprint
from ..network.saved import MODEL_FILE, PLAN_FILE, load_network
from ..network.settings import ModelSettings
from ..network.training import History
from ..prune.plan import PruningPlan
from ..prune.reasons import explain_layer
from .inputs import load_run, without_training
from .locks import check_reachable, report_locks
from .recipe.recipe import Recipe
from .report import order_notes, ranking_notes
from .run_folder import (
    BASELINE_ONNX,
    MEMBERSHIP_FILE,
    MEMBERSHIP_PICTURE,
    PRUNED_ONNX,
    RECIPE_FILE,
    RECOVERY_FILE,
    SCORES_FILE,
    SENSITIVITY_FILE,
    stages_folder,
    write_network,
    write_page,
    write_recipe,
)
from .stages.evidence_page import evidence_stage
from .stages.latency_budget import TimedLayers, table_stage, with_times
from .stages.planning import Round, plan_stage
from .stages.ranking import channels_of, circumstances, explain_stage, find_channels, with_sensitivity
from .stages.recovering import check_pathway, measure_pathways, recover_stage
from .stages.repairing import repair_stage, revised
from .stages.store import StageStore, unfinished


@dataclass(frozen=True)
class Pruned:
    """The result of ``secateur prune``: the plan, the history of the fine-tuning, if any, and the network's file.

    ``measure`` names the measure on validation images: accuracy, or agreement with the original.
    """

    plan: PruningPlan
    history: History | None
    measure: str
    path: Path


@dataclass(frozen=True)
class Recovery:
    """The result of ``secateur recover``: its training, the rows of PICNN's measures (empty without its pathway), the files."""

    history: History
    pathways: tuple[dict[str, Any], ...]
    files: tuple[Path, ...]


def explain_into(recipe: Recipe, out: Path, observer: Observer) -> KernelScores:
    """Score the kernels and write ``scores.safetensors``, ``recipe.toml`` and ``evidence.html``.

    The page shows the verdicts of the folder's plan, if there is one.
    """
    members_of(recipe.ranking.rank_by)
    with _command("explain", out, observer) as store:
        inputs = load_run(without_training(recipe), store)
        stage = explain_stage(inputs, channels_of(inputs.network, inputs.fingerprint))
        scores = store.run(stage)
        for note in ranking_notes(scores):
            observer.say(note)
        scores.save(out / SCORES_FILE)
        write_recipe(recipe, out)
        write_page(None, out)  # an existing page shows other scores
        if recipe.evidence.page:
            chosen = PruningPlan.load(out / PLAN_FILE) if (out / PLAN_FILE).is_file() else None
            write_page(store.run(evidence_stage(inputs, scores, chosen, stage.key)), out)
    return scores


def plan_into(recipe: Recipe, out: Path, observer: Observer) -> PruningPlan:
    """Plan from the run folder's scores and write ``plan.json``.

    Raises:
        UsageError: the recipe sets a largest drop, which only the main job can search for.
        BudgetError: no plan can reach the budget.
    """
    if recipe.budget.max_drop is not None:
        raise UsageError(
            f"{out / RECIPE_FILE} sets a drop of at most {recipe.budget.max_drop:g} points, which only "
            "`secateur prune-and-export` can search for. Give --speedup, --macs, --params or --size."
        )
    # Rounds would rank again in between; this is a single plan.
    recipe = replace(recipe, budget=replace(recipe.budget, rounds=1))
    scores = KernelScores.load(out / SCORES_FILE)
    with _command("plan", out, observer) as store:
        inputs = load_run(without_training(recipe), store)
        by_time = recipe.budget.by_time
        provider = choose_provider(recipe.measurement.provider if by_time else "cpu")
        whole = find_channels(inputs, store)
        report_locks(whole, recipe.budget, observer)
        if by_time:
            observer.say(
                "The plan uses the measured latency of single layers; only `prune-and-export` also times the pruned "
                "network and corrects the plan."
            )
            table = table_stage(inputs, whole, provider.provider)
            whole = with_times(whole, TimedLayers(*store.run(table), table.key))
        check_reachable(whole, recipe.budget, observer)
        key = sha256_json([sha256_file(out / SCORES_FILE), circumstances(inputs), inputs.content["calibration"]])
        ranked = with_sensitivity(inputs, whole, scores, key, store)
        plan = store.run(plan_stage(inputs, whole, recipe.budget, Round(1, ranked)))
        for note in order_notes(plan):
            observer.say(note)
        plan.save(out / PLAN_FILE)
        if ranked.sensitivity is not None:
            ranked.sensitivity.save(out / SENSITIVITY_FILE)
        write_recipe(recipe, out)
    return plan


def explain_plan(recipe: Recipe, out: Path, layer: str) -> list[tuple[int, float | None, bool, str]]:
    """Why each kernel of a layer stays or goes, by the run folder's plan: (index, score, whether it stays, why)."""
    chosen = PruningPlan.load(out / PLAN_FILE)
    network = load_model(recipe.model)
    return explain_layer(chosen, channels_of(network, "").groups, layer)


def prune_into(recipe: Recipe, out: Path, observer: Observer) -> Pruned:
    """Cut, repair and fine-tune by the run folder's plan, which may be edited, and write ``model.safetensors``."""
    check_pathway(recipe)
    plan = PruningPlan.load(out / PLAN_FILE)
    with _command("prune", out, observer) as store:
        inputs = load_run(recipe, store)
        plan = revised(channels_of(inputs.network, inputs.fingerprint), plan)
        if plan.missed:
            observer.say(f"Budget missed: {plan.missed}")
        key = sha256_json([plan.to_json(), inputs.fingerprint, circumstances(inputs), inputs.content["calibration"]])
        repaired = repair_stage(inputs, plan, key)
        network, _ = store.run(repaired)
        history = membership = None
        if recipe.recovery.epochs:
            found = store.run(recover_stage(inputs, network, plan, repaired.key))
            network, history, membership = found.network, found.history, found.membership
        write_network(network, plan, membership, out)
        write_recipe(recipe, out)
    return Pruned(plan, history, _measure(inputs.splits.validation.labelled), out / MODEL_FILE)


def recover_into(recipe: Recipe, out: Path, observer: Observer) -> Recovery:
    """Fine-tune the run folder's pruned network by its recipe, and write it with ``recovery.json``.

    Raises:
        UsageError: the number of epochs is 0.
        InputError: the folder holds no pruned network, or the model or the data cannot be used.
    """
    check_pathway(recipe)
    if not recipe.recovery.epochs:
        raise UsageError("--epochs must be at least 1 for fine-tuning (got 0).")
    plan = PruningPlan.load(out / PLAN_FILE)
    with _command("recover", out, observer) as store:
        inputs = load_run(recipe, store)
        small = load_network(out)
        origin = sha256_json([fingerprint(small), inputs.fingerprint, circumstances(inputs), dict(inputs.content)])
        tuned = store.run(recover_stage(inputs, small, plan, origin))
        rows: list[dict[str, Any]] | None = None
        if tuned.membership is not None:
            with store.timed("measure") as progress:
                rows = measure_pathways(inputs, small, (tuned.network, tuned.membership), progress, "before")
        write_network(tuned.network, plan, tuned.membership, out)
        about = {"recipe": recipe.to_dict(), "environment": describe_environment().to_json()}
        write_json(out / RECOVERY_FILE, {"history": tuned.history.to_json(), "pathways": rows, **about})
        write_recipe(recipe, out)
    history = tuned.history
    observer.say(
        f"Validation {_measure(inputs.splits.validation.labelled)} {100 * history.epochs[0].validation_accuracy:.2f}% before, "
        f"{100 * history.epochs[history.best].validation_accuracy:.2f}% after (epoch {history.best})."
    )
    if stale := [name for name in (PRUNED_ONNX, "report.json") if (out / name).exists()]:
        observer.say(
            f"{', '.join(stale)} still describe the previous network. Run `secateur export` to write the ONNX file again, "
            "and `secateur bench` to measure it."
        )
    members = (MEMBERSHIP_FILE, MEMBERSHIP_PICTURE) if tuned.membership is not None else ()
    return Recovery(history, tuple(rows or ()), tuple(out / name for name in (MODEL_FILE, RECOVERY_FILE, *members)))


def export_into(
    model: ModelSettings | None, out: Path, observer: Observer, input_type: str | None = None
) -> list[OnnxModel]:
    """Export the run folder's pruned network and its baseline, or one named model.

    Args:
        input_type: float32 or uint8; by default that of the folder's recipe, float32 for a named model.
    """
    with locked_folder(out):
        named = [(PRUNED_ONNX, load_model(model))] if model is not None else _pair(out)
        usual = Recipe().measurement if model is not None else Recipe.read(out / RECIPE_FILE).measurement
        taken = input_type or usual.input
        found = []
        for name, network in named:
            with observer.stage(name):
                about = {"what": "pruned" if network.cuts else "baseline"}
                found.append(export_onnx(network, out / name, about, input_type=taken))
    return found


def _pair(out: Path) -> list[tuple[str, Network]]:
    """The run folder's pruned network and the baseline that it was cut from."""
    small, recipe = load_network(out), Recipe.read(out / RECIPE_FILE)
    baseline = load_model(recipe.model)
    for cut in small.cuts[len(baseline.cuts) : -1]:  # of the head, if only some classes were kept
        baseline = replace(baseline, module=apply_cut(baseline.module, cut, baseline.example(1)).eval())
    baseline = replace(baseline, class_names=small.class_names)
    names = [Path(network.source.model).name for network in (small, baseline)]
    if names[0] != names[1] or small.source.weights_sha256 != baseline.source.weights_sha256:
        raise InputError(
            f"{out / MODEL_FILE} was cut from {names[0]}, but {RECIPE_FILE} beside it now names {names[1]} or other weights. "
            "Run `secateur plan` and `secateur prune` again."
        )
    return [(BASELINE_ONNX, baseline), (PRUNED_ONNX, small)]


@contextmanager
def _command(name: str, out: Path, observer: Observer) -> Iterator[StageStore]:
    """The run folder, locked for one command, with the store of its stages."""
    with locked_folder(out), unfinished(stages_folder(out, name), observer) as store:
        yield store


def _measure(labelled: bool) -> str:
    return "accuracy" if labelled else "agreement with the original"
