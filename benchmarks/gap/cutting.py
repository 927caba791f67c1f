"""Which statistic best predicts the cost of a cut: of one group, and of a whole plan."""

import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.kept_rows import Case, Rows
from secateur.explain.faithfulness.ablation import ablation_truth
from secateur.explain.gap.contributions import STATISTICS, contributions
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import KernelScores, RankingTask
from secateur.explain.unit_scores import UnitScores, score_units
from secateur.network.channels.cut import cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.evaluation import divergence
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.measure_sensitivity import measure_sensitivity


def statistic(case: Case) -> Rows:
    """The mean loss (KL, nats) when one group loses its lowest units by a statistic, before and after reconstruction."""
    network = case.network
    groups = find_groups(network.module, network.example())
    rows = []
    for name, layers in _candidates(case).items():
        units = score_units(groups, KernelScores(name, "any", layers))
        measured = measure_sensitivity(network, groups, units, case.calibration)
        after = {share: _mean_loss(measured, groups, share) for share in (0.75, 0.5)}
        before = {share: _loss_before(case, groups, units, share) for share in (0.75, 0.5)}
        rows.append({
            "statistic": name,
            **{f"before, {share:g} kept": before[share] for share in before},
            **{f"after, {share:g} kept": after[share] for share in after},
            "groups": len(units), "images": measured.judged_images,
        })  # fmt: skip
    return rows


def plans(case: Case) -> Rows:
    """The loss (KL, nats, validation images) of whole plans by a statistic, allocated by sensitivity, reconstructed."""
    network = case.network
    groups, costs = find_groups(network.module, network.example()), measure_cost(network)
    judged = case.splits.validation.sample(2000, case.seed)
    with torch.no_grad():
        original = torch.cat([network.logits(batch) for batch, _ in judged.batches(200)])
    rows = []
    for name, layers in _candidates(case).items():
        units = score_units(groups, KernelScores(name, "any", layers))
        found = measure_sensitivity(network, groups, units, case.calibration)
        row: dict[str, Any] = {"statistic": name}
        for macs in (0.77, 0.67, 0.5, 0.33):
            plan = plan_pruning(groups, units, costs, BudgetSettings(macs=macs), found)
            fixed, _ = repair(network, surgery.cut(network, plan), case.calibration, "reconstruct")
            with torch.no_grad():
                left = torch.cat([fixed.logits(batch) for batch, _ in judged.batches(200)])
            row[f"{macs:g} of the MACs"] = divergence(original, left)
        rows.append({**row, "images": len(judged)})
        print(rows[-1], flush=True)
    return rows


def _candidates(case: Case) -> dict[str, dict[str, Tensor]]:
    """The compared rankings: statistics of gAP's contributions, ablation, and others."""
    found = contributions(case.network, case.calibration)
    candidates: dict[str, dict[str, Tensor]] = {}
    for name in STATISTICS:
        for baseline in ("zero", "mean"):
            values = found.statistic(name, baseline)
            label = name if name != "mean" else "|mean|"
            candidates[f"{label}, {baseline} baseline"] = {layer: part.abs() for layer, part in values.items()}
    for name in ("magnitude", "taylor", "random"):
        candidates[name] = dict(rank_kernels(RankingTask(case.network, case.calibration, case.seed), name).layers)
    truth = ablation_truth(case.network, case.calibration.subset(torch.arange(128)))
    candidates["ablation, root mean square"] = truth.statistic("root_mean_square")
    return candidates


def _mean_loss(measured: Any, groups: Any, share: float) -> float:
    wanted = {group.name: round(share * group.units) for group in groups if group.name in measured.curves}
    losses = [dict(measured.curves[name]).get(kept) for name, kept in wanted.items()]
    return statistics.fmean(loss for loss in losses if loss is not None)


def _loss_before(case: Case, groups: Any, units: dict[str, UnitScores], share: float) -> float:
    """The same cuts without repair."""
    judged = case.splits.validation.sample(400, case.seed)
    original = torch.cat([case.network.logits(batch).detach() for batch, _ in judged.batches(200)])
    costs, losses = measure_cost(case.network), []
    for group in groups:
        if group.locked:
            continue
        gone = units[group.name].values.argsort(stable=True)[: group.units - round(share * group.units)].tolist()
        cut = cut_of(groups, {group.producers[0].layer: [group.producers[0].channels[unit][0] for unit in gone]})
        plan = PruningPlan("macs", 1.0, costs.of({}), costs.of_cut(cut), "", (), cut)
        small = surgery.cut(case.network, plan)
        left = torch.cat([small.logits(batch).detach() for batch, _ in judged.batches(200)])
        losses.append(divergence(original, left))
    return statistics.fmean(losses)
