"""The stages one by one, each on the files that the one before left in the run folder."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from ..common.errors import InputError, UsageError
from ..common.files import locked_folder, sha256_json, write_text
from ..common.progress import Observer
from ..explain.ranking import members_of
from ..explain.scores import KernelScores
from ..export.evidence.page import EVIDENCE_PAGE
from ..export.onnx.model import export_onnx
from ..export.runtime.session import choose_provider
from ..network.channels.cut import apply_cut
from ..network.channels.follow import find_groups
from ..network.channels.group import ChannelGroup
from ..network.load import load_model
from ..network.network import Network
from ..network.saved import MODEL_FILE, PLAN_FILE, load_network
from ..network.settings import ModelSettings
from ..prune import surgery
from ..prune.budget_search.layer_times import LatencyTable
from ..prune.cost import CostModel
from ..prune.plan import PruningPlan
from ..prune.reasons import explain_layer
from .evidence_page import write_run_evidence
from .inputs import load_inputs
from .latency_budget import make_table
from .measurement import BASELINE_ONNX, PRUNED_ONNX
from .operations import SCORES_FILE, SENSITIVITY_FILE, cut_and_repair, explain, fine_tune, plan, ranking_inputs, revised
from .pathways import check_pathway, write_membership
from .prune_and_export import RECIPE_FILE
from .recipe import Recipe
from .report import order_notes, ranking_notes

Row = tuple[str, ...]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file whose ranker is known.

    Raises:
        InputError: what :meth:`Recipe.read` raises, or an unknown ranker; the file is named.
    """
    recipe = Recipe.read(path)
    try:
        members_of(recipe.ranking.rank_by)
    except UsageError as error:
        raise InputError(f"The recipe {path}: {error}") from error
    return recipe


def explain_into(recipe: Recipe, out: Path, observer: Observer) -> list[Row]:
    """Score the kernels and write ``scores.safetensors``, ``recipe.toml`` and ``evidence.html``, the last with the verdicts of
    the plan in the folder, if there is one; a row per layer for the terminal.

    What the ranker keeps for a stop stays if it is stopped; the next time it goes on from there if nothing has changed.
    """
    members_of(recipe.ranking.rank_by)
    with locked_folder(out):
        with observer.stage("load") as progress:
            inputs = load_inputs(replace(recipe, recovery=replace(recipe.recovery, epochs=0)), progress)
        for note in inputs.notes:
            observer.say(note)
        unfinished = out / ".secateur" / "explain"
        scratch = unfinished / sha256_json(ranking_inputs(inputs, inputs.fingerprint))[:16]
        for earlier in set(unfinished.glob("*")) - {scratch}:
            shutil.rmtree(earlier)
        scratch.mkdir(parents=True, exist_ok=True)
        with observer.stage("explain") as progress:
            scores = explain(inputs, progress, scratch)
        for note in ranking_notes(scores):
            observer.say(note)
        scores.save(out / SCORES_FILE)
        write_text(out / RECIPE_FILE, recipe.to_toml())
        shutil.rmtree(unfinished)
        (out / EVIDENCE_PAGE).unlink(missing_ok=True)  # it is of other scores
        if recipe.evidence.page:
            chosen = PruningPlan.load(out / PLAN_FILE) if (out / PLAN_FILE).is_file() else None
            with observer.stage("evidence") as progress:
                write_run_evidence(inputs, scores, chosen, out / EVIDENCE_PAGE, progress)
    return [
        (layer, str(len(values)), *(f"{float(values.quantile(share)):.3g}" for share in (0.0, 0.5, 1.0)))
        for layer, values in scores.layers.items()
    ]


def plan_into(recipe: Recipe, out: Path, observer: Observer) -> tuple[PruningPlan, list[Row]]:
    """Plan from the run folder's scores and write ``plan.json``; a row per group for the terminal."""
    if recipe.budget.max_drop is not None:
        raise UsageError(
            f"{out / RECIPE_FILE} asks for a drop of at most {recipe.budget.max_drop:g} points, which only the search of "
            "`secateur prune-and-export` can find. Give --macs, --params, --size or --latency."
        )
    # rounds would explain again in between; this is one plan
    recipe = replace(recipe, budget=replace(recipe.budget, rounds=1))
    scores = KernelScores.load(out / SCORES_FILE)
    with locked_folder(out):
        with observer.stage("load"):
            inputs = load_inputs(replace(recipe, recovery=replace(recipe.recovery, epochs=0)))
        by_time = recipe.budget.latency is not None
        provider = choose_provider(recipe.measurement.provider if by_time else "cpu")
        if by_time:
            observer.say("The plan goes by measured layers; only `prune-and-export` times its cut and plans again.")
        with observer.stage("plan") as progress, tempfile.TemporaryDirectory() as folder:

            def table(groups: tuple[ChannelGroup, ...], costs: CostModel) -> LatencyTable:
                return make_table(inputs, groups, costs, provider.provider, Path(folder), progress)

            result, sensitivity = plan(inputs, scores, progress, table if by_time else None)
        for note in order_notes(result):
            observer.say(note)
        result.save(out / PLAN_FILE)
        if sensitivity is not None:
            sensitivity.save(out / SENSITIVITY_FILE)
        write_text(out / RECIPE_FILE, recipe.to_toml())
    rows: list[Row] = [
        (
            group.name,
            str(group.units),
            str(group.kept),
            str(group.step),
            f"{100 * group.saves.macs / result.before.macs:.1f}%",
            group.locked or group.decided_by,
        )
        for group in result.groups
    ]
    return result, rows


def explain_plan(recipe: Recipe, out: Path, layer: str) -> list[Row]:
    """Why each kernel of a layer stays or goes by the run folder's plan; a row per kernel for the terminal."""
    chosen = PruningPlan.load(out / PLAN_FILE)
    network = load_model(recipe.model)
    groups = find_groups(network.module, network.example(2))
    return [
        (str(kernel), "–" if score is None else f"{score:.4g}", "stays" if stays else "goes", why)
        for kernel, score, stays, why in explain_layer(chosen, groups, layer)
    ]


def prune_into(recipe: Recipe, out: Path, observer: Observer) -> list[str]:
    """Cut, repair and fine-tune by the run folder's plan and write ``model.safetensors``; lines for the terminal."""
    check_pathway(recipe)
    chosen = PruningPlan.load(out / PLAN_FILE)
    with locked_folder(out):
        with observer.stage("load") as progress:
            inputs = load_inputs(recipe, progress)
            chosen = revised(inputs, chosen)
        with observer.stage("repair") as progress:
            small, _ = cut_and_repair(inputs, chosen, progress)
        lines, membership = [], None
        if recipe.recovery.epochs:
            with observer.stage("recover") as progress:
                small, history, membership = fine_tune(inputs, small, progress)
            best = history.epochs[history.best]
            measure = "accuracy" if inputs.splits.validation.labelled else "agreement with the original"
            lines.append(f"validation {measure} {100 * best.validation_accuracy:.2f}% (epoch {history.best})")
        surgery.save(small, chosen, out)
        write_membership(membership, out)
        write_text(out / RECIPE_FILE, recipe.to_toml())
    shares = (chosen.after.macs / chosen.before.macs, chosen.after.parameters / chosen.before.parameters)
    lines.append(f"left: {100 * shares[0]:.1f}% of the MACs, {100 * shares[1]:.1f}% of the parameters")
    return [*lines, f"model: {out / MODEL_FILE}"]


def export_into(model: ModelSettings | None, out: Path, observer: Observer) -> list[str]:
    """Export the run folder's pruned network and its baseline, or one named model; lines for the terminal."""
    with locked_folder(out):
        work: list[tuple[str, Network]] = []
        if model is not None:
            work.append((PRUNED_ONNX, load_model(model)))
        else:
            small = load_network(out)
            recipe = Recipe.read(out / RECIPE_FILE)
            baseline = load_model(recipe.model)
            for cut in small.cuts[len(baseline.cuts) : -1]:  # its head, where some classes only were kept
                baseline = replace(baseline, module=apply_cut(baseline.module, cut, baseline.example(1)).eval())
            baseline = replace(baseline, class_names=small.class_names)
            names = [Path(network.source.model).name for network in (small, baseline)]
            if names[0] != names[1] or small.source.weights_sha256 != baseline.source.weights_sha256:
                raise InputError(
                    f"{out / MODEL_FILE} was cut from {names[0]}, but {RECIPE_FILE} beside it now names {names[1]} or other "
                    "weights. Run `secateur plan` and `secateur prune` again."
                )
            work += [(BASELINE_ONNX, baseline), (PRUNED_ONNX, small)]
        lines = []
        for name, network in work:
            with observer.stage(name):
                found = export_onnx(network, out / name, {"what": "pruned" if network.cuts else "baseline"})
            lines.append(
                f"{out / name}: {found.onnx_bytes} bytes, opset {found.opset}, parity with torch "
                f"{found.parity.max_relative_difference:.1e}"
            )
    return lines
