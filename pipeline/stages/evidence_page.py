"""Create evidence.html from a network, its scores and its plan: choose and explain images, and gather the evidence on
kernels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...common.errors import InputError
from ...common.files import sha256_json
from ...common.progress import Progress, in_parts, silent
from ...explain.evidence.chosen_images import Choice, choose_images
from ...explain.evidence.kernel_cards import GatheringSettings, KernelEvidence, gather_kernel_evidence
from ...explain.evidence.receptive_fields import FieldMaps
from ...explain.evidence.tree import MOST, EvidenceTree, PictureTask, explain_picture
from ...explain.gap.decomposition import Decomposer
from ...explain.gap.levels import DecompositionSettings
from ...explain.picnn.cluster_maps import ClusterEvidence, explain_clusters
from ...explain.scores import KernelScores, RankingTask
from ...export.evidence.data import WHOLE_SIDE, ExplainedPicture, PageContent, Verdicts
from ...export.evidence.page import EVIDENCE_PAGE, write_evidence_page
from ...network.channels.follow import find_groups
from ...network.images.images import Images
from ...network.network import Network
from ...prune.plan import PruningPlan
from ...prune.reasons import explain_layer
from ..inputs import Inputs
from ..recipe.recipe import Recipe
from ..run_folder import MEMBERSHIP_FILE
from .ranking import Ranked
from .store import Stage, StageStore, Workplace


@dataclass(frozen=True)
class Explained:
    """Evidence trees, their normalised images ``[n, C, H, W]``, and for the layers in them the node that outputs the map."""

    pictures: tuple[ExplainedPicture, ...]
    images: Tensor
    nodes: Mapping[str, str]

    @classmethod
    def of(cls, decomposer: Decomposer, pictures: Sequence[ExplainedPicture], images: Sequence[Tensor]) -> "Explained":
        """From the trees of a decomposer."""
        nodes = {point.name: point.node.name for point in decomposer.points}
        shape = decomposer.network.input_shape
        return cls(tuple(pictures), torch.stack(list(images)) if images else torch.empty(0, *shape), nodes)

    @property
    def kernels(self) -> dict[str, frozenset[int]]:
        """The kernels in the trees, by node."""
        found: dict[str, set[int]] = {}
        for picture in self.pictures:
            for _, evidence in picture.tree.walk():
                found.setdefault(self.nodes.get(evidence.layer, ""), set()).add(evidence.kernel)
        return {node: frozenset(kernels) for node, kernels in found.items()}


@dataclass(frozen=True)
class PageTask:
    """The inputs of a page.

    ``calibration``: images with labels or predictions; without them, the page shows trees but no kernels. ``scores`` and
    ``plan`` are shown if they exist and belong to this network."""

    network: Network
    recipe: Recipe
    device: str
    calibration: Images | None = None
    scores: KernelScores | None = None
    plan: PruningPlan | None = None


def write_evidence(inputs: Inputs, ranked: Ranked, plan: PruningPlan, store: StageStore) -> Path | None:
    """The evidence page of a run, in its stage's folder; None if the recipe disables it."""
    if not inputs.recipe.evidence.page:
        return None
    return store.run(evidence_stage(inputs, ranked.scores, plan, ranked.key))


def evidence_stage(inputs: Inputs, scores: KernelScores, plan: PruningPlan | None, key: str) -> Stage[Path]:
    """Explain images and kernels and write the page.

    Args:
        key: a hash of everything that determines the scores.
    """

    def work(place: Workplace) -> None:
        write_run_evidence(inputs, scores, plan, place.folder / EVIDENCE_PAGE, place.progress)

    return Stage(
        "evidence",
        {
            "ranked": key,
            "plan": sha256_json(plan.to_json()) if plan is not None else None,
            "validation": inputs.content["validation"],
            "settings": [asdict(inputs.recipe.evidence), asdict(inputs.recipe.picnn)],
        },
        work,
        lambda folder: folder / EVIDENCE_PAGE,
    )


def write_run_evidence(
    inputs: Inputs, scores: KernelScores, plan: PruningPlan | None, path: Path, progress: Progress = silent
) -> Path:
    """The page of a run, on automatically chosen validation images and on all kernels.

    If trees, neighbours, clusters or a ranking are unavailable for this network, the page says why.
    """
    settings, part = inputs.recipe.evidence, in_parts(progress, ("images", 4), ("page", 10))
    network, validation = inputs.network, inputs.splits.validation
    task = RankingTask(network, inputs.calibration, inputs.recipe.seed, inputs.device)
    choice = choose_images(
        network,
        validation,
        settings.evidence_images,
        settings.misclassified,
        seed=inputs.recipe.seed,
        batch_size=task.batch_size,
        device=inputs.device,
    )
    notes, missing = [*_asked(choice, settings.misclassified, validation)], dict[str, str]()
    try:
        explained = _explain_images(network, validation, choice, inputs.device, part("images"))
    except InputError as error:
        explained, missing["pictures"] = Explained((), torch.empty(0, *network.input_shape), {}), str(error)
    page = PageTask(network, inputs.recipe, inputs.device, inputs.calibration, scores, plan)
    return write_page(page, explained, path, missing, notes, part("page"))


def write_page(
    task: PageTask,
    explained: Explained,
    path: Path,
    missing: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    progress: Progress = silent,
) -> Path:
    """Gather the evidence on kernels and clusters, and write the page."""
    network, recipe = task.network, task.recipe
    left_out, kernels, clusters = dict(missing or {}), None, None
    scores = task.scores
    if scores is not None and not _fits(scores, network):
        scores, notes = (
            None,
            (
                *notes,
                "The scores in the run folder are of another network, so they are not shown. Run `secateur explain` again.",
            ),
        )
    if task.calibration is None:
        left_out["kernels"] = "There are no images to show kernels on. Give --data."
    else:
        kernels = _kernels(task, scores, task.calibration, explained, progress)
        try:
            clusters = _clusters(task, task.calibration, explained)
        except InputError as error:
            left_out["clusters"] = str(error)
    verdicts = None
    if task.plan is not None:
        verdicts = verdicts_of(network, task.plan)
        if verdicts is None:
            notes = (
                *notes,
                "The plan in the run folder is of another network, so no verdicts are shown. Run `secateur plan` again.",
            )
    if recipe.evidence.evidence_kernels is None and kernels is not None and kernels.patched is not None:
        notes = (
            *notes,
            "The images are large, so only some kernels have patches. Use --evidence-kernels to show more.",
        )
    content = PageContent(
        network.source.model,
        network.class_names,
        kernels,
        task.calibration,
        explained.pictures,
        explained.nodes,
        clusters,
        verdicts,
        left_out,
        tuple(notes),
    )
    return write_evidence_page(content, path)


def verdicts_of(network: Network, plan: PruningPlan) -> dict[str, Verdicts] | None:
    """The plan's verdict on every kernel, by layer; None for a plan of another network."""
    groups = find_groups(network.module, network.example(2))
    planned = {group.name: (group.units, group.layers) for group in plan.groups}
    for group in groups:
        own = (group.units, tuple(member.layer for member in group.producers))
        if planned.get(group.name) != own:
            return None
    found = {}
    for decided in plan.groups:
        for layer in decided.layers:
            rows = explain_layer(plan, groups, layer)
            found[layer] = Verdicts(
                tuple(stays for _, _, stays, _ in rows),
                tuple(why for *_, why in rows),
                tuple(score for _, score, _, _ in rows),
                decided.decided_by,
            )
    return found


def _asked(choice: Choice, misclassified: int, validation: Images) -> list[str]:
    if not validation.labelled:
        return ["The images have no labels, and the network's own predictions replace them, so none is misclassified."]
    if misclassified > len(choice.wrong):
        return [
            f"{misclassified} misclassified images were asked for; of {choice.looked_at} validation images "
            f"{len(choice.wrong)} are."
        ]
    return []


def _explain_images(network: Network, images: Images, choice: Choice, device: str, progress: Progress) -> Explained:
    decomposer = Decomposer(network, DecompositionSettings(most=MOST), device=device)
    fields, numbers = FieldMaps(decomposer.view, decomposer.example), [*choice.wrong, *choice.right]
    normalised, pictures = [], []
    for done, number in enumerate(numbers):
        (batch, labels), *_ = images.batches(1, torch.tensor([number]))
        tree: EvidenceTree = explain_picture(decomposer, PictureTask(images.names[number], batch[0]), fields)
        label = network.class_names[int(labels[0])] if images.labelled else ""
        normalised.append(batch[0])
        pictures.append(ExplainedPicture(tree, label))
        progress(done + 1, len(numbers))
    return Explained.of(decomposer, pictures, normalised)


def _kernels(
    task: PageTask, scores: KernelScores | None, calibration: Images, explained: Explained, progress: Progress
) -> KernelEvidence:
    whole = max(task.network.input_shape[1:]) <= WHOLE_SIDE
    settings = GatheringSettings(task.recipe.evidence.evidence_kernels, whole, explained.kernels)
    ranking = RankingTask(task.network, calibration, task.recipe.seed, task.device)
    return gather_kernel_evidence(ranking, scores, settings, progress)


def _clusters(task: PageTask, calibration: Images, explained: Explained) -> ClusterEvidence:
    folder = Path(task.network.source.model)
    trained = folder / MEMBERSHIP_FILE
    return explain_clusters(
        task.network,
        calibration,
        explained.images,
        task.recipe.picnn,
        trained=trained if folder.is_dir() and trained.is_file() else None,
        seed=task.recipe.seed,
        device=task.device,
    )


def _fits(scores: KernelScores, network: Network) -> bool:
    """Whether the scores match the layers and widths of the network."""
    modules = dict(network.module.named_modules())
    for layer, values in scores.layers.items():
        module = modules.get(layer)
        width = getattr(module, "out_channels", getattr(module, "out_features", None))
        if width != len(values):
            return False
    return True
