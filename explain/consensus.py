"""Combine several rankings: fractional ranks within each layer, weighted by each ranking's quality on held-out images.

Calibration images are split in half, stratified by class. Every method ranks on the first half. On the second half, kernels
are removed in its order, the most important first and then the least important first. A ranking's weight is proportional to
the area between the two curves, which is zero for an uninformative one. Validation and test images are not used. The members'
own scores are kept with the consensus: plans are also made by each member, and the one whose cut is measured to be nearest to
the original is used (``prune/widths/ranking_choice.py``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..common.errors import InputError, UsageError
from ..common.progress import Progress, in_parts
from ..network.images.images import Images
from ..network.images.sampling import stratified_split
from .faithfulness.curves import FaithfulnessCurves, faithfulness_curves
from .registry import get_ranker, register
from .scores import KernelScores, LayerScores, RankingTask

MEMBERS = ("agic", "gap", "picnn")
UNIT = "weighted fractional rank"


@register(
    "consensus",
    summary=f"{', '.join(MEMBERS)} combined: ranks within layers, weighted by each method's quality on held-out images",
    needs="labels",
    unit=UNIT,
    source="fractional ranks, weighted by the area between deletion curves (Petsiuk et al., RISE, BMVC 2018, for kernels)",
)
def score_consensus(task: RankingTask) -> LayerScores:
    """The consensus of ``MEMBERS``, as :func:`score_together` describes it."""
    return _together(task, MEMBERS)


def score_together(task: RankingTask, methods: Sequence[str]) -> KernelScores:
    """Combine the scores of several methods: for each layer the weighted mean of the kernels' fractional ranks, in (0, 1].

    A method that cannot run on this network or these images is left out, and ``details`` gives the reason. Layers that only
    some methods score are ranked by those. ``details`` hold the weights, the areas behind them, and a leave-one-out ablation:
    for each method, the share of kernels that move between the lower and the upper half of their layer without it, and the
    area.

    Raises:
        UsageError: there are fewer than two methods, duplicates, unknown methods, or a nested consensus.
        InputError: no method can run, or there are too few images to split.
    """
    return _together(task, methods).named("consensus", UNIT)


def _together(task: RankingTask, methods: Sequence[str]) -> LayerScores:
    check_members(methods)
    ranking_half, judging_half = halves(task.images, task.seed)
    part = in_parts(task.progress, *((method, 5) for method in methods), ("judging", 2 + len(methods)))
    found, left_out = _members(task, methods, ranking_half, part)
    done, total = 0, 2 * len(found) + 1

    def judged(scores: KernelScores) -> float:
        nonlocal done
        curves = faithfulness_curves(task.network, judging_half, scores, batch_size=task.batch_size, device=task.device)
        done += 1
        part("judging")(done, total)
        return area_between(curves)

    areas = {method: judged(scores) for method, scores in found.items()}
    weights = weights_of(areas)
    ranks = {method: fractional_ranks(scores.layers) for method, scores in found.items()}
    whole = combined(ranks, weights)
    area = judged(LayerScores(whole).named("consensus", UNIT))
    without = {}
    for method in found if len(found) > 1 else ():
        others = {name: ranks[name] for name in found if name != method}
        rest = combined(others, weights_of({name: areas[name] for name in others}))
        left = judged(LayerScores(rest).named("consensus", UNIT))
        without[method] = {"kernels that change sides": changed_sides(whole, rest), "area": left}
    details = {
        "members": list(found),
        "weights": weights,
        "areas": areas,
        "area": area,
        "without": without,
        "left out": left_out,
        "images that ranked": len(ranking_half),
        "images that judged": len(judging_half),
    }
    return LayerScores(whole, details=details, members=found)


def _members(
    task: RankingTask, methods: Sequence[str], images: Images, part: Callable[[str], Progress]
) -> tuple[dict[str, KernelScores], dict[str, str]]:
    """Each method's scores on the images, and why the others cannot run.

    Raises:
        InputError: no method can run.
    """
    found: dict[str, KernelScores] = {}
    left_out: dict[str, str] = {}
    for method in methods:
        own = replace(task, images=images, progress=part(method), scratch=_own_folder(task, method))
        try:
            found[method] = get_ranker(method).score(own)
        except InputError as error:
            left_out[method] = str(error)
    if not found:
        reasons = " ".join(f"{method}: {reason}" for method, reason in left_out.items())
        raise InputError(f"None of {', '.join(methods)} can rank this network. {reasons}")
    return found, left_out


def check_members(methods: Sequence[str]) -> None:
    """Check that there are at least two known methods, each once.

    Raises:
        UsageError: there are not.
    """
    if len(methods) < 2 or len(set(methods)) != len(methods):
        raise UsageError(f"A consensus needs two or more different rankings (got {', '.join(methods) or 'none'}).")
    for method in methods:
        get_ranker(method)
        if method == "consensus":
            raise UsageError(f"consensus already combines {', '.join(MEMBERS)}. Use it alone, or list its members.")


def halves(images: Images, seed: int) -> tuple[Images, Images]:
    """Two stratified halves, drawn with the seed.

    Raises:
        InputError: there are fewer than four images.
    """
    if len(images) < 4:
        raise InputError(
            f"A consensus splits the calibration images in half and needs at least four (got {len(images)}). Raise "
            "--calibration."
        )
    first, second = stratified_split(images.labels, len(images) // 2, seed)
    return images.subset(first), images.subset(second)


def area_between(curves: FaithfulnessCurves) -> float:
    """The area between the curves of removing the least and the most important kernels first, under the class's probability.

    It is zero for an uninformative ranking, and negative for a reversed one."""
    return curves.pruning.probability_area - curves.deletion.probability_area


def weights_of(areas: Mapping[str, float]) -> dict[str, float]:
    """Weights proportional to the areas, with negative areas set to zero; equal weights if none is positive."""
    kept = {method: max(0.0, area) for method, area in areas.items()}
    total = sum(kept.values())
    return {method: area / total if total > 0 else 1 / len(kept) for method, area in kept.items()}


def fractional_ranks(layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each layer, the kernels' ranks divided by their number, in (0, 1]; ties get their mean rank."""
    from scipy.stats import rankdata

    return {
        name: torch.from_numpy(rankdata(values.double().cpu().numpy())) / len(values) for name, values in layers.items()
    }


def combined(ranks: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The weighted mean of ranks by layer, over the methods that have the layer, float32 ``[C]``.

    If all of these have zero weight, they count equally.
    """
    layers: dict[str, None] = {}
    for own in ranks.values():
        layers.update(dict.fromkeys(own))
    result = {}
    for layer in layers:
        having = [method for method in ranks if layer in ranks[method]]
        total = sum(weights[method] for method in having)
        shares = [weights[method] / total if total > 0 else 1 / len(having) for method in having]
        parts = [share * ranks[method][layer] for share, method in zip(shares, having, strict=True)]
        result[layer] = torch.stack(parts).sum(0).float()
    return result


def changed_sides(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """The share of the kernels in both rankings that are in the lower half of their layer in only one of them."""
    changed = kernels = 0
    for layer, values in first.items():
        if layer in second:
            lower = [set(one.argsort(stable=True)[: len(one) // 2].tolist()) for one in (values, second[layer])]
            changed += len(lower[0] ^ lower[1])
            kernels += len(values)
    return changed / max(1, kernels)


def _own_folder(task: RankingTask, method: str) -> Path | None:
    if task.scratch is None:
        return None
    folder = task.scratch / method
    folder.mkdir(exist_ok=True)
    return folder
