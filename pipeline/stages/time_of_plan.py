"""What time a plan by MACs, parameters or bytes should give, and what the same time would have cost planned by time."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...common.environment import describe_environment
from ...common.files import read_json, sha256_json, write_json
from ...export.measure.latency_table import measure_table
from ...network.channels.cut import cut_to_json
from ...prune.plan import PruningPlan
from ...prune.planning import plan_pruning
from ...prune.settings import BudgetSettings
from ...prune.widths.sensitivity import Sensitivity
from ..inputs import Inputs
from .latency_budget import conditions_of
from .ranking import Ranked
from .shipped_files import Files
from .store import Stage, StageStore, Workplace


@dataclass(frozen=True)
class TimeOfPlan:
    """A plan's time by a roofline, beside that of the plan by time that is as fast.

    Attributes:
        speedup: the reckoned speedup over the baseline.
        loss: the sum of the measured losses of the plan's widths, in nats; None without sensitivities.
        loss_by_time: the same for the plan by time to this speedup.
        macs_by_time: the share of the MACs that the plan by time leaves.
    """

    speedup: float
    loss: float | None = None
    loss_by_time: float | None = None
    macs_by_time: float | None = None

    def note(self, measured: float | None, batch: int) -> str:
        """What it says, for a report; ``measured`` is the speedup of the shipped file."""
        found = "" if measured is None else f"; {measured:.2f} was measured"
        text = f"By a roofline of this machine the plan is {self.speedup:.2f} times as fast at batch {batch}{found}."
        if self.loss is None or self.loss_by_time is None or self.macs_by_time is None:
            return text
        return (
            f"{text} Planned by time (--speedup {self.speedup:.2f} --latency-batch {batch}) the same would lose "
            f"{self.loss_by_time:.3f} nats instead of {self.loss:.3f}, by the sum of measured losses, with "
            f"{100 * self.macs_by_time:.0f}% of the MACs left."
        )


def time_plan(
    inputs: Inputs, ranked: Ranked, plan: PruningPlan, files: Files, provider: str, store: StageStore
) -> TimeOfPlan | None:
    """The time of the plan, unless it was planned by time or removes nothing."""
    if inputs.recipe.budget.by_time or not plan.cut:
        return None
    return store.run(_stage(inputs, ranked, plan, files, provider))


def _stage(inputs: Inputs, ranked: Ranked, plan: PruningPlan, files: Files, provider: str) -> Stage[TimeOfPlan]:
    conditions = replace(conditions_of(inputs, provider), precision="fp32")

    def work(place: Workplace) -> None:
        channels, choice = ranked.channels, next(iter(ranked.choices.values()))
        table = measure_table(
            channels.network,
            channels.groups,
            channels.costs,
            files.models[0].path,
            conditions,
            inputs.recipe.budget.round_to,
            source="roofline",
            progress=place.progress,
        )
        costs = replace(channels.costs, times=table)
        left = costs.amount("latency", plan.cut) / costs.amount("latency")
        found = TimeOfPlan(1 / left)
        if choice.sensitivity is not None and len(ranked.choices) == 1 and left < 1:
            budget = BudgetSettings(latency=left, round_to=inputs.recipe.budget.round_to)
            by_time = plan_pruning(channels.groups, choice.units, costs, budget, choice.sensitivity)
            loss, loss_by_time = (_loss(one, choice.sensitivity) for one in (plan, by_time))
            found = TimeOfPlan(1 / left, loss, loss_by_time, by_time.after.macs / by_time.before.macs)
        write_json(place.folder / "time.json", asdict(found))

    def load(folder: Path) -> TimeOfPlan:
        return TimeOfPlan(**read_json(folder / "time.json"))

    key = {
        "ranked": ranked.key,
        "cut": sha256_json(cut_to_json(plan.cut)),
        "files": files.key,
        "conditions": asdict(conditions),
        "environment": describe_environment().to_json(),
    }
    return Stage("time of plan", key, work, load)


def _loss(plan: PruningPlan, sensitivity: Sensitivity) -> float:
    """The sum of the losses of a plan's widths, a removed branch's counted once."""
    gone, total = set(), 0.0
    for group in (group for group in plan.groups if not group.locked and group.name in sensitivity.curves):
        if group.kept:
            total += sensitivity.loss(group.name)(group.kept)
        elif sensitivity.curves[group.name][0][0] == 0:
            gone.add(group.name)
    return total + sum(sensitivity.loss(name)(0) for name in gone)
