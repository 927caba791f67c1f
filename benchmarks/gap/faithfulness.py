"""Faithfulness of rankings: deletion curves, random weights, permuted labels."""

import statistics
import time
from typing import Any

import torch

from benchmarks.kept_rows import Case, Rows
from secateur.explain.faithfulness.ablation import ablation_truth
from secateur.explain.faithfulness.curves import correlate, faithfulness_curves
from secateur.explain.faithfulness.randomisation import cascading_randomisation, label_permutation
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.network.network import Network
from secateur.network.training import TrainingSettings


def curves(case: Case, ranker: str) -> Rows:
    """Deletion and pruning curves of one ranker on validation images, and the time of ranking."""
    start = time.perf_counter()
    scores = rank_kernels(RankingTask(case.network, case.calibration, case.seed), ranker)
    seconds = time.perf_counter() - start
    found = faithfulness_curves(case.network, case.judged, scores)
    truth = ablation_truth(case.network, case.judged.subset(torch.arange(64))).statistic("root_mean_square")
    agreements = [correlate(scores.layers[layer], values) for layer, values in truth.items() if layer in scores.layers]
    spearman = [value.spearman for value in agreements if value.spearman == value.spearman]
    return [{
        "ranker": ranker, "deletion_area": found.deletion.area, "pruning_area": found.pruning.area,
        "deletion": list(found.deletion.accuracy), "pruning": list(found.pruning.accuracy), "images": found.images,
        "spearman_with_truth": statistics.fmean(spearman) if spearman else None, "details": dict(scores.details),
        "seconds": seconds,
    }]  # fmt: skip


def randomised(case: Case) -> Rows:
    """Spearman's correlation of gAP's scores with the original ones after re-initialising every layer from the head down."""
    images = case.calibration.subset(torch.arange(min(256, len(case.calibration))))
    rows = []
    for ranker in ("gap", "gap-hierarchical", "magnitude", "random"):

        def rank(network: Network, ranker: str = ranker) -> Any:
            return rank_kernels(RankingTask(network, images, case.seed), ranker).layers

        steps = cascading_randomisation(case.network, rank, seed=case.seed)
        row = {"ranker": ranker, "steps": {step.layer: step.resemblance.mean for step in steps}}
        rows.append({**row, "all_random": steps[-1].resemblance.mean})
    return rows


def permuted(case: Case) -> Rows:
    """Scores of the digits network trained on permuted labels compared with true labels, from the same initial weights."""
    settings = TrainingSettings(20, 64, 0.05, 5e-4, False, case.seed)
    rows = []
    for ranker in ("gap", "gap-hierarchical", "magnitude", "random"):

        def rank(network: Network, ranker: str = ranker) -> Any:
            return rank_kernels(RankingTask(network, case.calibration, case.seed), ranker).layers

        found = label_permutation(case.network, case.splits.train, rank, settings)
        rows.append({
            "ranker": ranker, "permuted": found.permuted.mean, "control": found.control.mean, "accuracy": found.accuracy,
            "permuted_accuracy": found.permuted_accuracy,
        })  # fmt: skip
    return rows
