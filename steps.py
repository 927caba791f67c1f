"""The stages one by one, each on the files that the one before left in the run folder."""

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .environment import available_cores, installed_packages
from .errors import InputError, UsageError
from .evidence_stage import write_run_evidence
from .explain.ranking import members_of
from .explain.scores import KernelScores
from .export.accuracy import MEASURES, accuracy_of, measure_accuracy, measure_drop
from .export.assembly import ranking_notes
from .export.evidence_page import EVIDENCE_PAGE
from .export.latency import compare_latency
from .export.onnx_model import export_onnx, read_metadata
from .export.runtime import choose_provider, open_session, why_not
from .files import locked_folder, sha256_json, write_text
from .inputs import load_inputs
from .latency_budget import make_table
from .network.channels import ChannelGroup, find_groups
from .network.cutting import apply_cut
from .network.images import Preprocessing, load_images, reorder_classes
from .network.model import MODEL_FILE, PLAN_FILE, Network, load_model, load_network
from .pathways import check_pathway, write_membership
from .pipeline import BASELINE_ONNX, PRUNED_ONNX, RECIPE_FILE
from .prune import surgery
from .prune.cost import CostModel
from .prune.layer_times import LatencyTable
from .prune.plan import PruningPlan, explain_layer
from .pruner import (
    SCORES_FILE,
    SENSITIVITY_FILE,
    cut_and_repair,
    explain,
    fine_tune,
    plan,
    ranking_inputs,
    revised,
)
from .recipe import ModelSettings, Recipe
from .stages import Observer

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


@dataclass(frozen=True)
class BenchSettings:
    """How two ONNX files are compared. Preprocessing comes from secateur's metadata in the first file, or from here."""

    batches: tuple[int, ...]
    data: str | None = None
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    provider: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batches must be whole numbers of at least 1 (got {self.batches}).")
        ModelSettings(input_shape=self.input_shape, mean=self.mean, std=self.std)


def bench(baseline: Path, pruned: Path, settings: BenchSettings, observer: Observer) -> list[Row]:
    """Compare two ONNX classifiers: latency in turns, and with data accuracy and drop; rows for the terminal.

    Where the test images have no labels, the second is compared with what the first predicts.

    Raises:
        InputError: a file is no ONNX model, the two differ in their input, or what is needed to read images is not known.
    """
    choice = choose_provider(settings.provider)
    if choice.note:
        observer.say(choice.note)
    shape = _onnx_input_shape(baseline, settings.input_shape)
    other = _onnx_input_shape(pruned, settings.input_shape)
    if other != shape:
        raise InputError(f"{baseline} takes images of {shape}, {pruned} of {other}; they cannot be compared.")
    rows: list[Row] = []
    if settings.data is not None:
        about = read_metadata(baseline)
        splits = load_images(settings.data, _preprocessing(about, shape, settings, baseline), seed=settings.seed)
        if set(named := about.get("class_names", ())) == set(splits.class_names):  # labels count as the outputs do
            splits = reorder_classes(splits, named)
        test, names = splits.test, splits.class_names or _class_names(baseline)
        with observer.stage("accuracy") as progress:
            first = measure_accuracy(baseline, test, names, choice.provider, progress)
            if not test.labelled:
                for note in splits.notes:
                    observer.say(note)
                observer.say("No labels for the test images: the second file is held against what the first predicts.")
                test = replace(test, labels=torch.from_numpy(first.predictions))
                first = accuracy_of(first.predictions, test, names)
            second = measure_accuracy(pruned, test, names, choice.provider, progress)
        drop = measure_drop(first, second, test, settings.seed)
        shares = [f"{100 * one.accuracy:.2f}%" for one in (first, second)]
        change = f"{-drop.points:+.2f} points ({-drop.high:+.2f} to {-drop.low:+.2f})"
        measure = MEASURES["labels"] if test.labelled else "agreement with the first"
        rows.append((measure, *shares, change))
    rows.append(("bytes", str(baseline.stat().st_size), str(pruned.stat().st_size), ""))
    for batch in settings.batches:
        with observer.stage(f"batch {batch}") as progress:
            found = compare_latency(
                baseline, pruned, shape, batch, choice.provider, seed=settings.seed, progress=progress
            )
        ratio, floor = found.ratio, found.noise_floor
        medians = (f"{found.baseline.median_ms:.3f} ms", f"{found.pruned.median_ms:.3f} ms")
        rows.append(
            (f"latency, batch {batch}", *medians, f"{ratio.ratio:.2f}x speed ({ratio.low:.2f} to {ratio.high:.2f})")
        )
        rows.append(("  first against itself", "", "", f"{floor.ratio:.3f} ({floor.low:.3f} to {floor.high:.3f})"))
    rows.append(("provider", choice.provider, choice.provider, ""))
    return rows


def diagnose() -> list[Row]:
    """What works here, what is missing, and the command that mends it; rows for the terminal."""
    packages = installed_packages()
    rows: list[Row] = [
        ("torch", packages.get("torch", "missing"), "ready"),
        ("cores", str(available_cores()), "ready"),
    ]
    if torch.cuda.is_available():
        rows.append(("GPU", torch.cuda.get_device_name(0), "used by --device auto"))
    else:
        rows.append(("GPU", "none that torch sees", "work runs on the CPU; check `nvidia-smi` if there should be one"))
    both = {"onnxruntime", "onnxruntime-gpu"} <= set(packages)
    found = ", ".join(f"{name} {packages[name]}" for name in ("onnxruntime", "onnxruntime-gpu") if name in packages)
    mend = "together they lose CUDA: pip uninstall onnxruntime onnxruntime-gpu, then install secateur again"
    rows.append(("ONNX Runtime", found or "missing", mend if both else "ready"))
    for provider in ("cpu", "cuda", "tensorrt"):
        reason = why_not(provider)
        rows.append((f"provider {provider}", "does not run" if reason else "runs", reason or "ready"))
    for package, need in (("timm", "pip install 'secateur[timm]' for timm:NAME models"),):
        with contextlib.suppress(ImportError):
            __import__(package)
            need = "ready"
        rows.append((package, "installed" if need == "ready" else "not installed", need))
    return rows


def _onnx_input_shape(path: Path, given: tuple[int, ...] | None) -> tuple[int, int, int]:
    inputs = open_session(path, "cpu").session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4:
        raise InputError(f"{path} has {len(inputs)} inputs, the first of shape {shape}; one image batch was expected.")
    sizes = given or tuple(shape[1:])
    if not all(isinstance(size, int) for size in sizes):
        raise InputError(f"{path} leaves its image size open ({shape}); give it with --input-shape.")
    channels, height, width = sizes
    return channels, height, width


def _class_names(path: Path) -> tuple[str, ...]:
    """A name for every output, which neither the data nor a network gives: numbers."""
    classes = open_session(path, "cpu").session.get_outputs()[0].shape[-1]
    if not isinstance(classes, int):
        raise InputError(f"{path} leaves its number of classes open; give test images with labels.")
    return tuple(f"class {index}" for index in range(classes))


def _preprocessing(
    metadata: dict[str, Any], shape: tuple[int, int, int], settings: BenchSettings, path: Path
) -> Preprocessing:
    mean, std = settings.mean or metadata.get("mean"), settings.std or metadata.get("std")
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        raise InputError(f"{path} does not say how its images were normalised; give --mean and --std.")
    resize = metadata.get("resize") if settings.input_shape is None else None
    return Preprocessing(
        shape, tuple(map(float, mean)), tuple(map(float, std)), resize if isinstance(resize, int) else None
    )
