"""``secateur train-picnn``: train a network with PICNN's pathway, or learn the membership of its filters alone."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..common.environment import describe_environment
from ..common.errors import InputError, UsageError
from ..common.files import locked_folder, write_json
from ..common.progress import Observer
from ..explain.picnn.cluster_maps import cluster_maps
from ..explain.picnn.entanglement import Entanglement, measure_entanglement
from ..explain.picnn.membership import Membership, fit_membership
from ..explain.picnn.pathway import Pathway
from ..explain.picnn.training import TrainedPicnn, train_picnn, with_new_layer
from ..explain.settings import PicnnSettings
from ..export.evidence.cluster_pictures import draw_cluster_maps
from ..export.report.tables import pathway_rows
from ..network.network import Network
from ..network.saved import MODEL_FILE, PLAN_FILE, save_network
from ..network.training import History
from .inputs import Inputs, load_inputs
from .recipe.recipe import Recipe
from .run_folder import MEMBERSHIP_FILE, MEMBERSHIP_PICTURE, SCORES_FILE, stages_folder, write_membership, write_recipe
from .stages.ranking import circumstances
from .stages.store import StageStore, unfinished

PICNN_FILE, CLUSTER_PICTURE = "picnn.json", "cluster-maps.png"
OTHERS_FILES = (PLAN_FILE, SCORES_FILE, "report.json")
PICTURED = 6
CODES_CHOICES = {"loss_over": "right", "complement": "drawn", "initial": "softmax"}


@dataclass(frozen=True)
class PicnnResult:
    """Rows for the terminal, (network, ACC1, ACC2, ACC3, MIS, its floor), and the written files."""

    rows: list[tuple[str, ...]]
    files: list[Path]


def chosen_settings(base: PicnnSettings, choices: str | None, **options: object) -> PicnnSettings:
    """PICNN's settings, overridden by options; ``choices`` is paper or code, for settings where these differ.

    Raises:
        UsageError: ``choices`` is neither, or a value is out of range.
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
    """Train a network with its pathway, or (``post_hoc``) P alone, and write the results.

    They are ``model.safetensors`` (except post hoc, where the network is unchanged), ``membership.safetensors``, ``picnn.json``
    with measures on test images and the history, two pictures, and ``recipe.toml``. An interrupted training is resumed by the
    same command.

    Raises:
        UsageError: a new layer is set with post hoc, or the folder holds the files of another command.
        InputError: the model, its weights or the data cannot be used, or there is no target layer.
    """
    settings = recipe.picnn
    if post_hoc and (settings.filters or settings.filters_per_class):
        raise UsageError(
            "--post-hoc does not change the network, but a new layer needs training. Leave out one of them."
        )
    for name in OTHERS_FILES:
        if (out / name).exists():
            raise UsageError(f"{out} holds {name} of another command. Choose another --out to keep the files apart.")
    recovery = replace(recipe.recovery, epochs=0 if post_hoc else 1, pathway="none")
    with locked_folder(out), unfinished(stages_folder(out, "picnn"), observer) as store:
        with store.timed("load") as progress:
            inputs = load_inputs(replace(recipe, recovery=recovery), progress)
            start, aimed = with_new_layer(inputs.network, settings, recipe.seed)
            Pathway(start, aimed)  # raises for networks that cannot be trained
        for note in inputs.notes:
            observer.say(note)
        if post_hoc:
            before, _ = _measured_post_hoc(inputs, replace(settings, masks="std"), "before", store)
            after, found = _measured_post_hoc(inputs, settings, "membership", store)
            files = _write_picnn(recipe, (before, after), found, None, inputs, out)
        else:
            plain = replace(settings, masks="std", target=None if start.new_layer else settings.target)
            before, _ = _measured_post_hoc(inputs, plain, "before", store)
            trained, after = _train(inputs, start, settings, aimed, store)
            save_network(trained.network, out, None)
            found = (trained.pathway, trained.membership)
            written = _write_picnn(recipe, (before, after), found, trained.history, inputs, out)
            files = [out / MODEL_FILE, *written]
    states = ("P random (STD)", "P post hoc" if post_hoc else "trained")
    return PicnnResult(_rows(states, (before, after)), files)


def _train(
    inputs: Inputs, start: Network, settings: PicnnSettings, aimed: PicnnSettings, store: StageStore
) -> tuple[TrainedPicnn, Entanglement]:
    """Train with the pathway and measure the result on test images."""
    seed, device = inputs.recipe.seed, inputs.device
    about = {
        "network": inputs.fingerprint,
        "images": dict(inputs.content),
        "picnn": asdict(settings),
        **circumstances(inputs),
    }
    with store.unstored("train", about) as scratch:
        with store.timed("train") as progress:
            trained = train_picnn(
                start,
                inputs.splits,
                aimed,
                seed=seed,
                device=device,
                progress=progress,
                checkpoint=scratch / "training.pt",
            )
        with store.timed("measure") as progress:
            pathway = trained.pathway.to(device)
            measured = measure_entanglement(pathway, inputs.splits.test, seed=seed, device=device, progress=progress)
    return trained, measured


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
    write_recipe(recipe, out)
    return files


def _measured_post_hoc(
    inputs: Inputs, settings: PicnnSettings, stage: str, store: StageStore
) -> tuple[Entanglement, tuple[Pathway, Membership]]:
    settings = replace(settings, filters=None, filters_per_class=None)
    with store.timed(stage) as progress:
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
    """Draw Grad-CAM by clusters for one validation image of each of the first classes, if the features have positions."""
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
