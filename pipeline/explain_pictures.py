"""``secateur explain IMAGE``: the evidence for decisions on single pictures, written into the run folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..common.environment import choose_device
from ..common.errors import InputError, UsageError
from ..common.files import locked_folder, write_json
from ..common.progress import Observer
from ..explain.evidence.regions import Box
from ..explain.evidence.tree import MOST, EvidenceTree, PictureTask, explain_picture
from ..explain.gap.decomposition import Decomposer
from ..explain.gap.levels import DecompositionSettings
from ..explain.gap.near_duplicates import Selection
from ..explain.scores import KernelScores
from ..export.evidence.data import ExplainedPicture
from ..export.evidence.page import EVIDENCE_PAGE
from ..export.evidence.tree_picture import draw_evidence
from ..network.images.load import load_images
from ..network.images.pictures import open_picture
from ..network.images.predicted_labels import label_images
from ..network.images.splits import Splits
from ..network.load import load_model, match_classes
from ..network.network import Network
from ..network.saved import PLAN_FILE
from ..prune.plan import PruningPlan
from .recipe.recipe import Recipe
from .run_folder import SCORES_FILE
from .stages.evidence_page import Explained, PageTask, write_page

EVIDENCE_FOLDER = "evidence"
AVERAGED_IMAGES = 256
LONGEST_NAME = 100
MOST_OF_ANYTHING = 2**31


@dataclass(frozen=True)
class EvidenceSettings:
    """What to explain: the decision, the layers of the decomposition, the regions to cover.

    ``class_name`` is a class's name or index, ``kernel`` is (layer, kernel, row, column); by default the predicted class.
    ``baseline`` is ``zero`` or ``mean``.
    """

    class_name: str | None = None
    kernel: tuple[str, int, int, int] | None = None
    layers: tuple[str, ...] | None = None
    top: int = 3
    baseline: str = "zero"
    occlude: tuple[Box, ...] = ()


def evidence_settings(
    class_name: str | None,
    kernel: str | None,
    layers: str | None,
    top: int | None,
    baseline: str | None,
    occlude: Sequence[str] | None,
) -> EvidenceSettings:
    """The settings from the options of ``secateur explain IMAGE``.

    Raises:
        UsageError: an option is malformed.
    """
    place = None
    if kernel is not None:
        layer, *numbers = kernel.rsplit(":", 3)
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            raise UsageError(f"--kernel must be LAYER:KERNEL:ROW:COLUMN (got {kernel!r}).")
        if max(map(int, numbers)) > MOST_OF_ANYTHING:
            raise UsageError(f"--kernel {kernel}: the numbers are too large for any network.")
        place = (layer, int(numbers[0]), int(numbers[1]), int(numbers[2]))
    if place is not None and class_name is not None:
        raise UsageError("--class and --kernel exclude each other. Give one of them.")
    if top is not None and top < 1:
        raise UsageError(f"--top must be at least 1 (got {top}).")
    if baseline not in (None, "zero", "mean"):
        raise UsageError(f"--baseline must be zero or mean (got {baseline!r}).")
    boxes = []
    for text in occlude or ():
        numbers = text.split(",")
        if len(numbers) != 4 or not all(number.strip().isdecimal() for number in numbers):
            raise UsageError(f"--occlude must be LEFT,TOP,RIGHT,BOTTOM in pixels (got {text!r}).")
        boxes.append(Box(*map(int, numbers)))
    chain = None if layers is None else tuple(name.strip() for name in layers.split(","))
    return EvidenceSettings(class_name, place, chain, top or 3, baseline or "zero", tuple(boxes))


def explain_pictures(
    recipe: Recipe, pictures: Sequence[Path], settings: EvidenceSettings, out: Path, observer: Observer
) -> Iterator[tuple[EvidenceTree, Path]]:
    """Write ``evidence/NAME.json`` and ``evidence/NAME.png`` for each picture; yield each tree with the path of its picture.

    A page of all of them, ``evidence/evidence.html``, is written last; it also shows kernels if the recipe names data.

    The recipe's data name the classes if the model does not, and provide the means. All pictures are opened before the first
    one is explained; each result is written before the next picture.

    Raises:
        UsageError: the baseline is the mean, but there are no data.
        InputError: a picture cannot be read or its name is not UTF-8, the model or the data cannot be used, a layer or a
            class does not exist, or the class scores of a picture are not finite.
    """
    data = recipe.data.data or ("digits" if recipe.model.model == "digits" else None)
    if settings.baseline == "mean" and data is None:
        raise UsageError("--baseline mean needs training images to average over. Give --data.")
    with observer.stage("load"):
        network = load_model(recipe.model)
        to_pixels = network.preprocessing.to_pixels
        for path in pictures:
            _check_name(path)
            open_picture(path)
        averaged = splits = None
        if data is not None:
            splits = load_images(data, network.preprocessing, seed=recipe.seed)
            network, splits = match_classes(network, splits)
            if settings.baseline == "mean":
                averaged = splits.train.sample(AVERAGED_IMAGES, recipe.seed)
        label = None if settings.class_name is None else _class_index(network, settings.class_name)
    chain = DecompositionSettings(layers=settings.layers, selection=Selection(top=settings.top), most=MOST)
    decomposer = Decomposer(network, chain, device=choose_device(recipe.device))
    if settings.layers is None and len(decomposer.points) == 1:
        observer.say(f"This network has one stage, {decomposer.points[0].name}. Name more layers with --layers.")
    folder = out / EVIDENCE_FOLDER
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder} is a file, but the evidence is written into a folder of that name. Rename it, or choose another --out."
        )
    explained: list[tuple[ExplainedPicture, torch.Tensor]] = []
    with locked_folder(out), observer.stage("evidence") as progress:
        if averaged is not None:
            decomposer.subtract_averages(averaged, 64)
        for done, (path, name) in enumerate(zip(pictures, _distinct_names(pictures), strict=True)):
            image = network.preprocessing.normalise(to_pixels(open_picture(path)).unsqueeze(0))[0]
            tree = explain_picture(decomposer, PictureTask(path.name, image, label, settings.kernel, settings.occlude))
            folder.mkdir(exist_ok=True)
            write_json(folder / f"{name}.json", tree.to_json())
            draw_evidence(tree, folder / f"{name}.png")
            progress(done + 1, len(pictures))
            explained.append((ExplainedPicture(tree), image))
            yield tree, folder / f"{name}.png"
        (folder / EVIDENCE_PAGE).unlink(missing_ok=True)
        if recipe.evidence.page:
            shown, images = zip(*explained, strict=True)
            page = _page_task(recipe, network, splits, out)
            write_page(page, Explained.of(decomposer, shown, images), folder / EVIDENCE_PAGE, progress=progress)


def _page_task(recipe: Recipe, network: Network, splits: Splits | None, out: Path) -> PageTask:
    """The kernels on the page of these pictures: needs data, and uses the scores and the plan in the folder."""
    device = choose_device(recipe.device)
    if splits is None:
        return PageTask(network, recipe, device)
    sample, none = splits.train.sample(recipe.data.calibration, recipe.seed), torch.arange(0)
    few = replace(splits, train=sample, validation=splits.validation.subset(none), test=splits.test.subset(none))
    calibration = label_images(network, few, device=device).train
    scores = KernelScores.load(out / SCORES_FILE) if (out / SCORES_FILE).is_file() else None
    plan = PruningPlan.load(out / PLAN_FILE) if (out / PLAN_FILE).is_file() else None
    return PageTask(network, recipe, device, calibration, scores, plan)


def _check_name(path: Path) -> None:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"The image {str(path)!r} has a name that is not UTF-8. Rename it.") from error


def _distinct_names(pictures: Sequence[Path]) -> list[str]:
    """File names without their suffix, shortened to a valid length, and numbered if two are the same."""
    names: list[str] = []
    for path in pictures:
        stem, count = path.stem[:LONGEST_NAME], 1
        name = stem
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names.append(name)
    return names


def _class_index(network: Network, name: str) -> int:
    """The index of a class given by its name or index.

    Raises:
        InputError: the class does not exist.
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
