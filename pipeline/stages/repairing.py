"""The stage that cuts a network by a plan and repairs it without labels."""

from dataclasses import asdict, replace
from pathlib import Path

from ...common.files import read_json, write_json
from ...common.progress import Progress, silent
from ...network.network import Network
from ...network.saved import load_network
from ...prune import surgery
from ...prune.plan import PruningPlan
from ...prune.repair.repair import RepairReport, repair
from ..inputs import Inputs
from ..recipe.recipe import Recipe
from .ranking import Channels
from .store import Stage, Workplace

Repaired = tuple[Network, RepairReport]


def repair_stage(
    inputs: Inputs, plan: PruningPlan, plan_key: str, start: Network | None = None, label: str = ""
) -> Stage[Repaired]:
    """Cut by a plan and repair by the recipe.

    Args:
        plan_key: a hash of everything that determines the plan.
        start: the network from an earlier round; the original if None.
    """

    def work(place: Workplace) -> None:
        small, report = cut_and_repair(inputs, plan, place.progress, start)
        surgery.save(small, plan, place.folder)
        write_json(place.folder / "repair.json", report.to_json())

    def load(folder: Path) -> Repaired:
        return load_stage_network(folder, inputs.recipe), RepairReport.from_json(read_json(folder / "repair.json"))

    recipe, names = inputs.recipe, (start or inputs.network).class_names
    return Stage(
        f"repair{label}",
        {
            "plan": plan_key,
            "repair": asdict(recipe.repair),
            "names": (Path(recipe.model.model).name, names),
            "validation": inputs.content["validation"],
        },
        work,
        load,
    )


def cut_and_repair(
    inputs: Inputs, plan: PruningPlan, progress: Progress = silent, start: Network | None = None
) -> Repaired:
    """Cut by a plan and repair by the recipe, on the calibration images.

    Args:
        start: a repaired network in which a part of the plan is already cut; the original if None.
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


def revised(channels: Channels, plan: PruningPlan) -> PruningPlan:
    """Recompute a plan that may have been edited by hand from the units that its groups remove."""
    return plan.revised(channels.groups, channels.costs)


def load_stage_network(folder: Path, recipe: Recipe) -> Network:
    """Load a stage's network, with its factory's path as in the recipe rather than relative to the stage's folder."""
    network = load_network(folder)
    if Path(recipe.model.model).is_dir():
        return network
    return replace(network, source=replace(network.source, model=recipe.model.model))
