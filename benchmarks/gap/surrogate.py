"""Evaluation of decompositions: the sparse surrogate and the discriminative degree."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.kept_rows import Case, Rows
from secateur.explain.faithfulness.curves import discriminative_degree, surrogate_agreement
from secateur.explain.gap.decisions import ClassDecision
from secateur.explain.gap.decomposition import Decomposer
from secateur.explain.gap.levels import DecompositionSettings
from secateur.explain.gap.near_duplicates import Selection


def surrogate(case: Case) -> Rows:
    """Agreement of the network reduced to the k most important kernels of each stage, for each image.

    The others are set to the baseline of the contributions: zero, or their mean. Compared with random kernels.
    """
    images = case.splits.validation.sample(200, case.seed)
    rows = []
    for baseline in ("zero", "mean"):
        for label, widths in _surrogate_widths(case):
            most = max(widths)
            settings = DecompositionSettings(selection=Selection(top=most, overlap=1.0), most=most)
            decomposer = Decomposer(case.network, settings)
            if baseline == "mean":
                decomposer.subtract_averages(case.calibration, 128)
            points = decomposer.points
            kept: list[list[Tensor]] = [[] for _ in points]
            chance: list[list[Tensor]] = [[] for _ in points]
            generator = torch.Generator().manual_seed(case.seed)
            for batch, _ in images.batches(50):
                found = decomposer(batch)
                for index, (point, width) in enumerate(zip(points, widths, strict=True)):
                    importance = found.importance[point.name]
                    kept[index].append(_top(importance, width))
                    chance[index].append(_top(torch.rand(importance.shape, generator=generator), width))
            chosen, drawn = (
                surrogate_agreement(decomposer.view, points, [torch.cat(part) for part in parts], images, fill=baseline)
                for parts in (kept, chance)
            )
            rows.append({
                "baseline": baseline, "k": label, "kernels": list(widths), "of": [point.channels for point in points],
                "agreement": chosen.agreement, "accuracy": chosen.accuracy,
                "surrogate_accuracy": chosen.surrogate_accuracy, "random_agreement": drawn.agreement, "images": len(images),
            })  # fmt: skip
    return rows


def _surrogate_widths(case: Case) -> Iterator[tuple[str, tuple[int, ...]]]:
    widths = [point.channels for point in Decomposer(case.network).points]
    for part in (16, 8, 4, 2):
        yield f"1/{part}", tuple(max(1, width // part) for width in widths)
    yield "16", tuple(min(16, width) for width in widths)


def _top(values: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(values, dtype=torch.bool)
    return mask.scatter_(1, values.topk(count, dim=1).indices, True)


def degree(case: Case) -> Rows:
    """The discriminative degree by stage: mean over the kernels that were kept at least ten times."""
    decomposer = Decomposer(case.network)
    classes = len(case.network.class_names)
    counts = {point.name: torch.zeros(classes, point.channels, dtype=torch.int64) for point in decomposer.points}
    images = case.splits.validation.sample(500, case.seed)
    for batch, labels in images.batches(50):
        for level in decomposer(batch, ClassDecision(labels)).levels:
            counts[level.point.name].index_add_(0, labels, level.kept(len(labels)))
    rows = []
    for point in decomposer.points:
        often = counts[point.name].sum(0) >= 10
        found = discriminative_degree(counts[point.name])[often]
        rows.append(
            {
                "stage": point.name,
                "degree": float(found.mean()),
                "kernels": int(often.sum()),
                "floor": 1 / classes,
                "images": len(images),
            }
        )
    return rows
