"""gAP, gradient-based activation propagation (Cheng et al., IJCV 131(5), 2023), as two rankers.

``gap`` asks what every kernel contributes to the class logit; ``gap-hierarchical`` passes importance down stage by stage,
through the strongest kernels of each.
"""

import torch
from torch import Tensor

from ..registry import register
from ..scores import LayerScores, RankingTask
from .contributions import class_means, contributions
from .decisions import ClassDecision
from .decomposition import Decomposer
from .levels import DecompositionSettings
from .near_duplicates import Selection

STATISTIC, BASELINE = "root_mean_square", "mean"
SELECTED = Selection(top=8)
DECISIONS_KEPT = 16  # for each image and stage: more than a person wants to see, for a ranking of all kernels


@register(
    "gap",
    summary="gAP contributions to the class logit: root mean square over images, against each kernel's mean activation",
    needs="labels",
    unit="logits per place",
    source="Cheng et al., IJCV 131(5), 2023, eqs. 3-4",
)
def score_gap(task: RankingTask) -> LayerScores:
    """Root mean square of the mean-baseline contributions over images; the signed per-class means beside it.

    Of the statistics that ``benchmarks.gap`` compares, plans by this one lose least at two thirds and at half of the MACs of
    ResNet-20 after reconstruction (validation images).
    """
    found = contributions(
        task.network, task.images, batch_size=task.batch_size, device=task.device, progress=task.progress
    )
    return LayerScores(
        found.statistic(STATISTIC, BASELINE),
        found.per_class(BASELINE),
        {"images": len(task.images), "statistic": STATISTIC, "baseline": BASELINE},
    )


@register(
    "gap-hierarchical",
    summary="gAP importance passed down stage by stage through the strongest kernels of each decision",
    needs="labels",
    unit="share of the decision",
    source="Cheng et al., IJCV 131(5), 2023, sections 3.2 and 4.1",
)
def score_gap_hierarchical(task: RankingTask) -> LayerScores:
    """Root mean square over images of each kernel's importance, against mean activations; signed per-class means beside it."""
    settings = DecompositionSettings(selection=SELECTED, most=DECISIONS_KEPT, between=True)
    decomposer = Decomposer(task.network, settings, device=task.device)
    decomposer.subtract_averages(task.images, task.batch_size)
    collected: dict[str, list[Tensor]] = {}
    done = 0
    for batch, labels in task.images.batches(task.batch_size):
        for layer, importance in decomposer(batch, ClassDecision(labels)).layer_importance.items():
            collected.setdefault(layer, []).append(importance)
        done += len(labels)
        task.progress(done, len(task.images))
    whole = {layer: torch.cat(parts) for layer, parts in collected.items()}
    classes = max(len(task.network.class_names), int(task.images.labels.max()) + 1)
    details = {
        "images": len(task.images),
        "statistic": "root_mean_square",
        "baseline": "mean",
        "kernels for each decision": SELECTED.top,
        "decisions kept": DECISIONS_KEPT,
    }
    return LayerScores(
        {layer: part.square().mean(0).sqrt() for layer, part in whole.items()},
        {layer: class_means(part, task.images.labels, classes) for layer, part in whole.items()},
        details,
    )
