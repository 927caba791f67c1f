"""Load and check a run's network and images before any work."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from ..common.environment import choose_device, seed_everything
from ..common.errors import InputError
from ..common.progress import Progress, silent
from ..network.images.images import Images
from ..network.images.load import check_readable, load_images
from ..network.images.pictures import eight_bits
from ..network.images.predicted_labels import label_images
from ..network.images.splits import Splits, carve_validation
from ..network.kept_classes import kept_classes, restrict_images, restrict_network
from ..network.load import load_model, match_classes
from ..network.network import Network, fingerprint
from .recipe.recipe import Recipe
from .stages.store import StageStore

FIRST_PIXELS = 64
"""So many images of a split show early whether they are pictures of eight bits; every one is checked when it is classified."""


@dataclass(frozen=True)
class Inputs:
    """The checked network and images of a run. ``calibration`` is the calibration set, used for ranking and repair."""

    recipe: Recipe
    network: Network
    splits: Splits
    calibration: Images
    device: str
    notes: tuple[str, ...]
    fingerprint: str = field(repr=False)
    content: Mapping[str, str] = field(repr=False)


def load_inputs(recipe: Recipe, progress: Progress = silent) -> Inputs:
    """Load and check network and images before any work: formats, classes, finite weights, readable pictures.

    Images without labels get the network's own predictions. Calibration and validation images are then sampled from those of
    the kept classes.

    Raises:
        InputError: the model, its weights or the data cannot be used.
        MachineError: the requested device does not exist.
    """
    device = choose_device(recipe.device)
    seed_everything(recipe.seed)
    network, data = load_model(recipe.model), data_of(recipe)
    splits = load_images(data, network.preprocessing, validation_share=recipe.data.validation_share, seed=recipe.seed)
    network, splits = match_classes(network, splits)
    splits = label_images(network, splits, device=device, progress=progress)
    kept = kept_classes(splits.class_names, recipe.data.keep_classes, recipe.data.drop_classes)
    if len(kept) < len(splits.class_names):
        network, splits = restrict_network(network, kept), restrict_images(splits, kept)
    splits = carve_validation(splits, recipe.data.validation_share, recipe.seed)
    calibration = splits.train.sample(recipe.data.calibration, recipe.seed)
    parts = {"calibration": calibration, "validation": splits.validation, "test": splits.test}
    if recipe.recovery.epochs:
        parts["training"] = splits.train
    total, done = sum(map(len, parts.values())), 0
    content: dict[str, str] = {}

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    for name, images in parts.items():
        if not len(images):
            raise InputError(f"{data}: the {name} split is empty. Add images to it.")
        content[name] = check_readable(images, name, step)
        if recipe.measurement.input == "uint8":
            eight_bits(images.pixels(torch.arange(min(len(images), FIRST_PIXELS))))  # the files will be fed the pixels
    return Inputs(
        recipe, network, splits, calibration, device, (*network.notes, *splits.notes), fingerprint(network), content
    )


def data_of(recipe: Recipe) -> str:
    """The recipe's images; for the embedded digits network, the digits.

    Raises:
        InputError: the recipe names no images.
    """
    if recipe.data.data is None and recipe.model.model != "digits":
        raise InputError(
            f"--model {recipe.model.model} needs its images: give --data (a folder with train/ and test/ or of pictures only, "
            "cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, digits, or FILE.py:FUNCTION)."
        )
    return recipe.data.data or "digits"


def look_at(recipe: Recipe) -> list[tuple[str, str]]:
    """Load the model and list the images without decoding them; returns a description of both.

    Raises:
        InputError: as :func:`load_inputs`, except for pictures that cannot be read.
    """
    network = load_model(recipe.model)
    splits = load_images(
        data_of(recipe), network.preprocessing, validation_share=recipe.data.validation_share, seed=recipe.seed
    )
    network, splits = match_classes(network, splits)
    shown = ", ".join(splits.class_names[:5]) + (", …" if len(splits.class_names) > 5 else "")
    return [
        ("model", recipe.model.model),
        ("input", "x".join(map(str, network.input_shape))),
        ("classes", f"{len(splits.class_names)} ({shown})"),
        *((f"{name} images", f"{len(getattr(splits, name)):,}") for name in ("train", "validation", "test")),
        ("without labels", ", ".join(splits.unlabelled) or "none"),
    ]


def load_run(recipe: Recipe, store: StageStore) -> Inputs:
    """Load a run's inputs as its first stage, and report notes on them to the user."""
    with store.timed("load") as progress:
        inputs = load_inputs(recipe, progress)
    for note in inputs.notes:
        store.observer.say(note)
    return inputs


def without_training(recipe: Recipe) -> Recipe:
    """The recipe of a command that does not fine-tune, so that training images need not be checked."""
    return replace(recipe, recovery=replace(recipe.recovery, epochs=0, pathway="none"))
