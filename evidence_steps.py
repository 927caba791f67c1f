"""``secateur explain IMAGE``: the evidence for decisions on single pictures, written beside a run's other files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .environment import choose_device
from .errors import InputError, UsageError
from .explain.decomposition import Decomposer, DecompositionSettings
from .explain.duplicates import Selection
from .explain.evidence import MOST, EvidenceTree, PictureTask, explain_picture
from .explain.regions import Box
from .export.evidence import draw_evidence
from .files import locked_folder, write_json
from .network.images import load_images, open_picture
from .network.model import Network, load_model, match_classes
from .recipe import Recipe
from .stages import Observer

EVIDENCE_FOLDER = "evidence"
AVERAGED_IMAGES = 256


@dataclass(frozen=True)
class EvidenceSettings:
    """What ``secateur explain IMAGE`` is asked: the decision, the chain, the regions to cover.

    ``class_name`` is a class's name or index, ``kernel`` (layer, kernel, row, column); with neither, the class predicted.
    ``baseline`` is ``zero`` or ``mean``. ``data`` names the classes where the model does not, and gives the means.
    """

    class_name: str | None = None
    kernel: tuple[str, int, int, int] | None = None
    layers: tuple[str, ...] | None = None
    top: int = 3
    baseline: str = "zero"
    occlude: tuple[Box, ...] = ()
    data: str | None = None


def evidence_settings(
    class_name: str | None,
    kernel: str | None,
    layers: str | None,
    top: int | None,
    baseline: str | None,
    occlude: Sequence[str] | None,
    data: str | None,
) -> EvidenceSettings:
    """The options of ``secateur explain IMAGE`` as they were typed.

    Raises:
        UsageError: one has another form.
    """
    place = None
    if kernel is not None:
        layer, *numbers = kernel.rsplit(":", 3)
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            raise UsageError(f"--kernel must be LAYER:KERNEL:ROW:COLUMN (got {kernel!r}).")
        place = (layer, int(numbers[0]), int(numbers[1]), int(numbers[2]))
    if place is not None and class_name is not None:
        raise UsageError("Give --class or --kernel, not both: one decision is explained.")
    if top is not None and top < 1:
        raise UsageError(f"--top must be at least 1 (got {top}).")
    if baseline not in (None, "zero", "mean"):
        raise UsageError(f"--baseline must be zero or mean (got {baseline!r}).")
    if baseline == "mean" and data is None:
        raise UsageError("--baseline mean needs training images to average over: give --data.")
    boxes = []
    for text in occlude or ():
        numbers = text.split(",")
        if len(numbers) != 4 or not all(number.strip().isdecimal() for number in numbers):
            raise UsageError(f"--occlude must be LEFT,TOP,RIGHT,BOTTOM in pixels (got {text!r}).")
        boxes.append(Box(*map(int, numbers)))
    chain = None if layers is None else tuple(name.strip() for name in layers.split(","))
    return EvidenceSettings(class_name, place, chain, top or 3, baseline or "zero", tuple(boxes), data)


def explain_pictures(
    recipe: Recipe, pictures: Sequence[Path], settings: EvidenceSettings, out: Path, observer: Observer
) -> list[tuple[EvidenceTree, Path]]:
    """Write ``evidence/NAME.json`` and ``evidence/NAME.png`` for each picture; the trees and where their pictures are."""
    with observer.stage("load"):
        network = load_model(recipe.model)
        averaged = None
        if settings.data is not None:
            splits = load_images(settings.data, network.preprocessing, seed=recipe.seed)
            network, splits = match_classes(network, splits)
            if settings.baseline == "mean":
                averaged = splits.train.sample(AVERAGED_IMAGES, recipe.seed)
        to_input = network.preprocessing
        images = [to_input.normalise(to_input.to_pixels(open_picture(path)).unsqueeze(0))[0] for path in pictures]
        label = None if settings.class_name is None else _class_index(network, settings.class_name)
    chain = DecompositionSettings(layers=settings.layers, selection=Selection(top=settings.top), most=MOST)
    device = choose_device(recipe.device)
    decomposer = Decomposer(network, chain, device=device)
    results = []
    with locked_folder(out), observer.stage("evidence") as progress:
        if averaged is not None:
            decomposer.subtract_averages(averaged, 64)
        for path, image, name in zip(pictures, images, _distinct_names(pictures), strict=True):
            task = PictureTask(path.name, image, label, settings.kernel, settings.occlude)
            tree = explain_picture(decomposer, task)
            folder = out / EVIDENCE_FOLDER
            folder.mkdir(exist_ok=True)
            write_json(folder / f"{name}.json", tree.to_json())
            draw_evidence(tree, folder / f"{name}.png")
            results.append((tree, folder / f"{name}.png"))
            progress(len(results), len(pictures))
    return results


def _distinct_names(pictures: Sequence[Path]) -> list[str]:
    """File names without their suffix; numbered where two are the same."""
    seen: Counter[str] = Counter()
    names = []
    for path in pictures:
        seen[path.stem] += 1
        names.append(path.stem if seen[path.stem] == 1 else f"{path.stem}-{seen[path.stem]}")
    return names


def _class_index(network: Network, name: str) -> int:
    """A class by its name or its index.

    Raises:
        InputError: there is none.
    """
    if name in network.class_names:
        return network.class_names.index(name)
    with torch.no_grad():
        classes = network.logits(network.example(1)).shape[1]
    if name.isdecimal() and int(name) < classes:
        return int(name)
    named = f"named {', '.join(network.class_names[:20])}" if network.class_names else "without names"
    raise InputError(
        f"There is no class {name!r}. The network has {classes}, {named}; give a name or 0 to {classes - 1}."
    )
