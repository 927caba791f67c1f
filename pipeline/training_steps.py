"""``secateur train-picnn`` and ``secateur recover``: networks trained on, alone, beside a run's other files."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..common.environment import code_sha256, describe_environment, installed_packages
from ..common.errors import InputError, UsageError
from ..common.files import locked_folder, sha256_json, write_json, write_text
from ..common.progress import Observer
from ..explain.picnn.cluster_maps import cluster_maps
from ..explain.picnn.entanglement import Entanglement, measure_entanglement
from ..explain.picnn.membership import Membership, fit_membership
from ..explain.picnn.pathway import Pathway
from ..explain.picnn.training import train_picnn, with_new_layer
from ..explain.settings import PicnnSettings
from ..export.evidence.cluster_pictures import draw_cluster_maps
from ..export.report.report import pathway_rows
from ..network.network import fingerprint
from ..network.saved import MODEL_FILE, PLAN_FILE, load_network, save_network
from ..network.training import History
from ..prune import surgery
from ..prune.plan import PruningPlan
from .inputs import Inputs, load_inputs
from .measurement import PRUNED_ONNX
from .operations import MEMBERSHIP_FILE, SCORES_FILE, fine_tune
from .pathways import MEMBERSHIP_PICTURE, RECOVERY_FILE, check_pathway, measure_pathways, write_membership
from .prune_and_export import RECIPE_FILE
from .recipe import Recipe

PICNN_FILE, CLUSTER_PICTURE = "picnn.json", "cluster-maps.png"
OTHERS_FILES = (PLAN_FILE, SCORES_FILE, "report.json")
PICTURED = 6
CODES_CHOICES = {"loss_over": "right", "complement": "drawn", "initial": "softmax"}


@dataclass(frozen=True)
class PicnnResult:
    """Rows for the terminal, (network, ACC1, ACC2, ACC3, MIS, its floor), and the files that were written."""

    rows: list[tuple[str, ...]]
    files: list[Path]


def chosen_settings(base: PicnnSettings, choices: str | None, **options: object) -> PicnnSettings:
    """Settings of PICNN with the options that were given on top; ``choices`` paper or code, where these differ.

    Raises:
        UsageError: other choices, or a value out of range.
    """
    if choices not in (None, "paper", "code"):
        raise UsageError(f"--choices must be paper or code (got {choices!r}).")
    plain = {name: getattr(PicnnSettings(), name) for name in CODES_CHOICES}
    preset = CODES_CHOICES if choices == "code" else plain if choices == "paper" else {}
    given = {name: value for name, value in options.items() if value is not None}
    if "filters" in given or "filters_per_class" in given:
        given = {"filters": None, "filters_per_class": None, **given}
    return replace(base, **{**preset, **given})


def train_picnn_into(recipe: Recipe, out: Path, observer: Observer, *, post_hoc: bool = False) -> PicnnResult:
    """Train a network with its pathway, or (``post_hoc``) P alone, and write what came out of it.

    ``model.safetensors`` (not post hoc: the network is as it was), ``membership.safetensors``, ``picnn.json`` with measures on
    test images and the history, two pictures, and ``recipe.toml``. What is kept for a stop stays if it is stopped; the next
    time training goes on from there if nothing has changed.

    Raises:
        UsageError: post hoc with a new layer, or the folder holds the files of another command.
        InputError: the model, its weights or the data are off, or there is no target layer.
    """
    settings = recipe.picnn
    if post_hoc and (settings.filters or settings.filters_per_class):
        raise UsageError("--post-hoc leaves the network as it is; a new layer needs training. Drop one of them.")
    for name in OTHERS_FILES:
        if (out / name).exists():
            raise UsageError(
                f"{out} holds {name} of another command, whose files would be mixed up. Choose another --out."
            )
    with locked_folder(out):
        with observer.stage("load") as progress:
            inputs = load_inputs(
                replace(recipe, recovery=replace(recipe.recovery, epochs=0 if post_hoc else 1)), progress
            )
            start, aimed = with_new_layer(inputs.network, settings, recipe.seed)
            Pathway(start, aimed)  # what cannot be trained is met here
        for note in inputs.notes:
            observer.say(note)
        if post_hoc:
            before, _ = _measured_post_hoc(inputs, replace(settings, masks="std"), "before", observer)
            after, found = _measured_post_hoc(inputs, settings, "membership", observer)
            files = _write_picnn(recipe, (before, after), found, None, inputs, out)
        else:
            plain = replace(settings, masks="std", target=None if start.new_layer else settings.target)
            before, _ = _measured_post_hoc(inputs, plain, "before", observer)
            with _scratch(out, "picnn", inputs, asdict(settings)) as scratch:
                with observer.stage("train") as progress:
                    trained = train_picnn(
                        start,
                        inputs.splits,
                        aimed,
                        seed=recipe.seed,
                        device=inputs.device,
                        progress=progress,
                        checkpoint=scratch / "training.pt",
                    )
                save_network(trained.network, out, None)
                with observer.stage("measure") as progress:
                    after = measure_entanglement(
                        trained.pathway.to(inputs.device),
                        inputs.splits.test,
                        seed=recipe.seed,
                        device=inputs.device,
                        progress=progress,
                    )
                found = (trained.pathway, trained.membership)
                files = [
                    out / MODEL_FILE,
                    *_write_picnn(recipe, (before, after), found, trained.history, inputs, out),
                ]
    states = ("P random (STD)", "P post hoc" if post_hoc else "trained")
    return PicnnResult(_rows(states, (before, after)), files)


def _write_picnn(
    recipe: Recipe,
    measures: tuple[Entanglement, Entanglement],
    found: tuple[Pathway, Membership],
    history: History | None,
    inputs: Inputs,
    out: Path,
) -> list[Path]:
    pathway, membership = found
    write_membership(membership, out)
    classes = len(membership.class_names)
    report = {
        "before": measures[0].to_json(),
        "after": measures[1].to_json(),
        "post_hoc": history is None,
        "history": history.to_json() if history else None,
        "filters_per_class": torch.bincount(membership.classes_of_filters, minlength=classes).tolist(),
        "recipe": recipe.to_dict(),
        "environment": describe_environment().to_json(),
    }
    write_json(out / PICNN_FILE, report)
    files = [out / PICNN_FILE, out / MEMBERSHIP_FILE, out / MEMBERSHIP_PICTURE]
    files += _draw_maps(pathway, membership, inputs, out / CLUSTER_PICTURE)
    write_text(out / RECIPE_FILE, recipe.to_toml())
    return files


def recover_into(recipe: Recipe, out: Path, observer: Observer) -> PicnnResult:
    """Fine-tune the run folder's pruned network by its recipe and write it back; with PICNN's pathway ``recovery.json`` too.

    Raises:
        UsageError: no epoch is asked for.
        InputError: the folder holds no pruned network, or the model or the data are off.
    """
    check_pathway(recipe)
    if not recipe.recovery.epochs:
        raise UsageError("--epochs must be at least 1: there is nothing to recover by otherwise.")
    plan = PruningPlan.load(out / PLAN_FILE)
    with locked_folder(out):
        with observer.stage("load") as progress:
            inputs = load_inputs(recipe, progress)
            small = load_network(out)
        extra = {
            "recovery": asdict(recipe.recovery),
            "picnn": asdict(recipe.picnn),
            "network": fingerprint(small),
        }
        with _scratch(out, "recover", inputs, extra) as scratch:
            with observer.stage("recover") as progress:
                tuned, history, membership = fine_tune(inputs, small, progress, scratch)
            measured = None
            if membership is not None:
                with observer.stage("measure") as progress:
                    measured = measure_pathways(inputs, small, (tuned, membership), progress, "before")
            surgery.save(tuned, plan, out)
            write_membership(membership, out)
            write_json(
                out / RECOVERY_FILE,
                {
                    "history": history.to_json(),
                    "pathways": measured,
                    "recipe": recipe.to_dict(),
                    "environment": describe_environment().to_json(),
                },
            )
            write_text(out / RECIPE_FILE, recipe.to_toml())
    best = history.epochs[history.best]
    files = [out / MODEL_FILE, out / RECOVERY_FILE]
    files += [out / MEMBERSHIP_FILE, out / MEMBERSHIP_PICTURE] if membership is not None else []
    measure = "accuracy" if inputs.splits.validation.labelled else "agreement with the original"
    observer.say(
        f"Validation {measure} {100 * history.epochs[0].validation_accuracy:.2f}% before, "
        f"{100 * best.validation_accuracy:.2f}% after (epoch {history.best})."
    )
    if earlier := [name for name in (PRUNED_ONNX, "report.json") if (out / name).exists()]:
        observer.say(
            f"Of the network before are still: {', '.join(earlier)}. `secateur export` writes the ONNX file again, "
            "`secateur bench` measures it."
        )
    return PicnnResult(pathway_rows(measured or ()), files)


def _measured_post_hoc(
    inputs: Inputs, settings: PicnnSettings, stage: str, observer: Observer
) -> tuple[Entanglement, tuple[Pathway, Membership]]:
    settings = replace(settings, filters=None, filters_per_class=None)
    with observer.stage(stage) as progress:
        found = fit_membership(
            inputs.network,
            inputs.calibration,
            settings,
            seed=inputs.recipe.seed,
            device=inputs.device,
            progress=progress,
        )
        measured = measure_entanglement(found[0], inputs.splits.test, seed=inputs.recipe.seed, device=inputs.device)
    return measured, found


def _rows(states: Sequence[str], measures: Sequence[Entanglement]) -> list[tuple[str, ...]]:
    shown = [{"state": state, "membership": "", **one.to_json()} for state, one in zip(states, measures, strict=True)]
    return [(state, *row[1:]) for state, row in zip(states, pathway_rows(shown), strict=True)]


def _draw_maps(pathway: Pathway, membership: Membership, inputs: Inputs, path: Path) -> list[Path]:
    """Grad-CAM by clusters for one validation image of each of the first classes; nothing where features have no places."""
    images = inputs.splits.validation
    firsts = [(images.labels == label).nonzero().flatten() for label in range(len(membership.class_names))]
    chosen = torch.cat([found[:1] for found in firsts if len(found)])[:PICTURED]
    pixels, labels = images.pixels(chosen), images.labels[chosen]
    try:
        normalised = images.preprocessing.normalise(pixels).to(inputs.device)
        maps = cluster_maps(pathway.to(inputs.device), membership, normalised, labels)
    except InputError:
        path.unlink(missing_ok=True)
        return []
    draw_cluster_maps(maps, pixels, membership.class_names, membership, path)
    return [path]


@contextmanager
def _scratch(out: Path, kind: str, inputs: Inputs, settings: object) -> Iterator[Path]:
    """A folder named by all that decides the training, for what is kept to go on after a stop; it goes when that is done."""
    key = sha256_json([
        inputs.fingerprint, dict(inputs.content), asdict(inputs.network.preprocessing), settings, inputs.recipe.seed,
        inputs.device, installed_packages(), code_sha256(),
    ])  # fmt: skip
    root = out / ".secateur" / kind
    folder = root / key[:16]
    for earlier in set(root.glob("*")) - {folder}:
        shutil.rmtree(earlier)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(root)
