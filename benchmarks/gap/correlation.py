"""Correlation of contributions with ablation: Table 1 of Cheng et al. 2023."""

import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.kept_rows import Case, Rows
from secateur.explain.faithfulness.ablation import ablation_drops
from secateur.explain.faithfulness.curves import correlate
from secateur.explain.gap.decomposition import Decomposer
from secateur.explain.gap.levels import DecompositionSettings
from secateur.network.graph.execution import output_node, run_graph
from secateur.network.graph.segment import Segment
from secateur.network.hooks import frozen, pick_logits
from secateur.network.images.images import Images

EXPLAINED, DECISIONS = 64, 200


def table_one(case: Case) -> Rows:
    """Pearson's correlation with ablation, mean over decisions, for every pair of stages."""
    network = case.network
    inputs, _ = next(case.judged.batches(EXPLAINED))
    decomposer = Decomposer(network, DecompositionSettings())
    view, stages = decomposer.view, list(reversed(decomposer.points))
    found = decomposer(inputs)
    with torch.no_grad():
        logits = network.logits(inputs)
    target, name = output_node(view), "T"
    decisions = torch.stack([torch.arange(len(inputs)), logits.argmax(1)], 1)
    generator = torch.Generator().manual_seed(case.seed)
    rows = []
    for point, level in zip(stages, found.levels, strict=True):
        average = _average(view, point.node, case.calibration)
        truth = ablation_drops(view, point.node, target, inputs, decisions, average)
        values, gradient = _maps(view, point.node, target, inputs, decisions)
        activation = gradient * values
        estimates = {
            "AA": activation.mean((2, 3)),
            "MA": activation.amax((2, 3)),
            "AG": gradient.mean((2, 3)),
            "MG": gradient.amax((2, 3)),
            "AA against the mean": (gradient * (values - average.view(1, -1, 1, 1))).mean((2, 3)),
        }
        row: dict[str, Any] = {"pair": f"{name} -> {point.name}", "decisions": len(decisions)}
        for which, estimate in estimates.items():
            each = [correlate(*pair).pearson for pair in zip(estimate, truth, strict=True)]
            each = [value for value in each if value == value]
            row[which] = statistics.fmean(each) if each else None
            row[f"{which}, deviation"] = statistics.stdev(each) if len(each) > 1 else None
        emptied = ablation_drops(view, point.node, target, inputs, decisions, torch.zeros_like(average))
        each = [correlate(*pair).pearson for pair in zip(estimates["AA"], emptied, strict=True)]
        row["AA, truth by setting to zero"] = statistics.fmean(value for value in each if value == value)
        rows.append(row)
        columns = torch.stack([level.image, level.kernel, level.row, level.column], 1)
        chosen = torch.randperm(len(columns), generator=generator)[:DECISIONS]
        target, name, decisions = point.node, point.name, columns[chosen]
    return rows


def _average(view: Any, node: Any, images: Images) -> Tensor:
    with torch.no_grad(), frozen(view):
        sums = [run_graph(view, batch, [node])[node].mean((2, 3)) for batch, _ in images.batches(128)]
    return torch.cat(sums).mean(0)


def _maps(view: Any, source: Any, target: Any, inputs: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
    """F and G of a source's maps for each decision, ``[decisions, C, H, W]``."""
    segment = Segment(view, source, [target])
    with frozen(view):
        with torch.no_grad():
            known = run_graph(view, inputs, [source, *segment.reads])
        values = known[source].index_select(0, decisions[:, 0]).requires_grad_()
        (output,) = segment.run(values, inputs, known, decisions[:, 0])
        output = output if isinstance(output, Tensor) and output.dim() == 4 else pick_logits(output)
        chosen = output[(torch.arange(len(decisions)), *decisions[:, 1:].T)]
        (gradient,) = torch.autograd.grad(chosen.sum(), values)
    return values.detach(), gradient
