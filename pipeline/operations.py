"""What is done to a run's network, one by one: explain, measure, plan, cut and repair, fine-tune. The main job and the single
commands share these.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..common.environment import code_sha256, installed_packages
from ..common.errors import UsageError
from ..common.files import read_json, sha256_json, write_json
from ..common.progress import Progress, in_parts, silent
from ..explain.picnn.membership import Membership
from ..explain.ranking import members_of, rank_kernels
from ..explain.scores import KernelScores, RankingTask
from ..network.channels.cut import cut_to_json
from ..network.channels.follow import find_groups
from ..network.channels.group import ChannelGroup
from ..network.network import Network
from ..network.training import History
from ..prune import surgery
from ..prune.budget_search.layer_times import LatencyTable
from ..prune.cost import CostModel, measure_cost
from ..prune.plan import PruningPlan, obstacle, plan_pruning
from ..prune.repair.fine_tune import recover, recover_with_pathway
from ..prune.repair.repair import RepairReport, judging, repair
from ..prune.widths.ranking_choice import best_plan, choices, measure_orders
from ..prune.widths.sensitivity import RUINED, Sensitivity
from .inputs import Inputs

SCORES_FILE, SENSITIVITY_FILE = "scores.safetensors", "sensitivity.json"
MEMBERSHIP_FILE = "membership.safetensors"


def ranking_inputs(inputs: Inputs, origin: str) -> dict[str, Any]:
    """All that decides the scores of a network's kernels; ``origin`` hashes the network itself."""
    recipe = inputs.recipe
    members = members_of(recipe.ranking.rank_by)
    return {
        "network": origin,
        "images": inputs.content["calibration"],
        "preprocessing": asdict(inputs.network.preprocessing),
        "calibration": recipe.data.calibration,
        "ranking": asdict(recipe.ranking),
        "agic": asdict(recipe.agic) if "agic" in members else None,
        "picnn": asdict(recipe.picnn) if "picnn" in members else None,
        "seed": recipe.seed,
        "device": inputs.device,
        "packages": installed_packages(),
        "code": code_sha256(),
    }


def explain(inputs: Inputs, progress: Progress = silent, scratch: Path | None = None) -> KernelScores:
    """Score every kernel by the recipe's ranker on the calibration images.

    Args:
        scratch: a folder where the ranker keeps what it needs to go on after a stop; it must be of these inputs alone.
    """
    recipe = inputs.recipe
    task = RankingTask(
        inputs.network, inputs.calibration, recipe.seed, inputs.device, progress, scratch, recipe.agic, recipe.picnn
    )
    return rank_kernels(task, recipe.ranking.rank_by)


def measure(
    inputs: Inputs, groups: tuple[ChannelGroup, ...], scores: KernelScores, progress: Progress = silent
) -> Sensitivity:
    """Measure what each group loses at each width on the calibration images; of a consensus by the best of its orders."""
    return measure_orders(inputs.network, groups, scores, inputs.calibration, device=inputs.device, progress=progress)


TableMaker = Callable[[tuple[ChannelGroup, ...], CostModel], LatencyTable]


def plan(
    inputs: Inputs, scores: KernelScores, progress: Progress = silent, table: TableMaker | None = None
) -> tuple[PruningPlan, Sensitivity | None]:
    """Find the groups and costs of the network, measure sensitivities if the recipe asks for them, and plan.

    Args:
        table: measures what layers take; needed for a latency budget.
    """
    groups = find_groups(inputs.network.module, inputs.network.example(2))
    if reason := obstacle(groups, inputs.recipe.budget.round_to):
        raise UsageError(reason)
    part = in_parts(progress, ("sensitivity", 1), ("tries", 1 if scores.members else 0))
    measured = inputs.recipe.budget.allocation == "sensitivity"
    sensitivity = measure(inputs, groups, scores, part("sensitivity")) if measured else None
    costs = measure_cost(inputs.network)
    if table is not None:
        costs = replace(costs, times=table(groups, costs))
    plans = {
        name: plan_pruning(groups, choice.units, costs, inputs.recipe.budget, choice.sensitivity)
        for name, choice in choices(groups, scores, sensitivity).items()
    }
    return try_plans(inputs, plans, part("tries")), sensitivity


def try_plans(
    inputs: Inputs,
    plans: Mapping[str, PruningPlan],
    progress: Progress = silent,
    start: Network | None = None,
    scratch: Path | None = None,
) -> PruningPlan:
    """Of plans to one budget by different choices the one whose cut, repaired by the recipe, stays nearest to the original.

    Nearness is the KL divergence of the class scores on validation images, as the steps of a repair are judged; no label is
    read. Where the recipe distills, its cheaper steps are the trial.

    Args:
        start: a network from which a part of the plans is gone already; the original if None.
        scratch: a folder of these inputs alone, where what was found of each cut is kept, to go on after a stop.
    """
    kind = "reconstruct" if inputs.recipe.repair.repair == "distill" else inputs.recipe.repair.repair
    trial = replace(inputs, recipe=inputs.recipe.override(repair=kind))

    @functools.cache  # a single plan needs none
    def judge() -> Callable[[Network], float]:
        return judging(inputs.network, inputs.splits.validation, inputs.recipe.seed, inputs.device)

    def divergence(plan: PruningPlan, part: Progress) -> float:
        kept = scratch / f"{sha256_json(cut_to_json(plan.cut))[:16]}.json" if scratch is not None else None
        if kept is not None and kept.is_file():
            return float(read_json(kept))
        small, _ = cut_and_repair(trial, plan, part, start)
        found = min(judge()(small), RUINED)
        if kept is not None:
            write_json(kept, found)
        return found

    return best_plan(plans, divergence, progress)


def revised(inputs: Inputs, plan: PruningPlan) -> PruningPlan:
    """A plan as edited by hand: what its groups remove decides."""
    groups = find_groups(inputs.network.module, inputs.network.example(2))
    return plan.revised(groups, measure_cost(inputs.network))


def cut_and_repair(
    inputs: Inputs, plan: PruningPlan, progress: Progress = silent, start: Network | None = None
) -> tuple[Network, RepairReport]:
    """Cut by a plan and repair by the recipe, on the calibration images.

    Args:
        start: a network from which a part of the plan is gone already, repaired; the original if None.
    """
    small = surgery.cut(inputs.network, plan, start)
    return repair(
        inputs.network,
        small,
        inputs.calibration,
        inputs.recipe.repair.repair,
        before=start,
        validation=inputs.splits.validation,
        seed=inputs.recipe.seed,
        device=inputs.device,
        progress=progress,
    )


def fine_tune(
    inputs: Inputs, small: Network, progress: Progress = silent, scratch: Path | None = None
) -> tuple[Network, History, Membership | None]:
    """Recover a pruned network by the recipe; the best epoch on validation is kept. With PICNN's pathway, its membership.

    Args:
        scratch: a folder of these inputs alone, where training is kept after every epoch, to go on from.
    """
    recipe = inputs.recipe
    kept = None if scratch is None else scratch / "training.pt"
    if recipe.recovery.pathway == "picnn":
        return recover_with_pathway(
            inputs.network,
            small,
            inputs.splits,
            recipe.recovery,
            recipe.picnn,
            seed=recipe.seed,
            device=inputs.device,
            progress=progress,
            checkpoint=kept,
        )
    network, history = recover(
        inputs.network,
        small,
        inputs.splits,
        recipe.recovery,
        seed=recipe.seed,
        device=inputs.device,
        progress=progress,
        checkpoint=kept,
    )
    return network, history, None
