"""A pruning plan: the units that every group loses, the cost before and after, and the file that holds it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import read_json, write_json
from ..network.channels.cut import Cut, cut_from_json, cut_of, cut_to_json
from ..network.channels.group import ChannelGroup, Side
from .cost import Cost, CostModel


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one group.

    Attributes:
        name: the group.
        layers: the layers whose output channels it holds.
        units: the number of units before.
        removed: the units to remove.
        step: the alignment of the width, in units.
        saves: what removing these units alone would save.
        decided_by: the ranker of the scores.
        counted: the layers whose scores were added up.
        scores: one score per unit; empty for a locked group. After several rounds each is of the last round that had the unit.
        locked: why the group cannot be cut; empty if it can.
        rounds: after several rounds, the round in which each unit was removed, 0 for those kept.
    """

    name: str
    layers: tuple[str, ...]
    units: int
    removed: tuple[int, ...]
    step: int
    saves: Cost
    decided_by: str
    counted: tuple[str, ...]
    scores: tuple[float, ...]
    locked: str
    rounds: tuple[int, ...] = ()

    @property
    def kept(self) -> int:
        return self.units - len(self.removed)

    @property
    def aligned(self) -> bool:
        """Whether the new width is a multiple of the step, or nothing is removed."""
        return not self.removed or self.kept % self.step == 0


@dataclass(frozen=True)
class WholeBranches:
    """The whole branches that a plan removes, and the loss of removing them all, with everything else uncut.

    Attributes:
        names: the branches, each named by its last layer.
        together_nats: the loss measured with all of them removed.
        sum_nats: the sum of the losses measured with one of them removed.
        plans: the number of plans that were made, among them one without whole branches
            (:func:`~secateur.prune.widths.branches_together.plan_with_branches`).
        losses: the losses of branches that the plan was made by, by the group that ends each.
    """

    names: tuple[str, ...]
    together_nats: float
    sum_nats: float
    plans: int
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PruningPlan:
    """What to cut.

    Attributes:
        resource: what the budget limits: macs, params, size or latency.
        fraction: the fraction of the resource that may be left; for latency, of the milliseconds by the table.
        before: the cost of the network before the cut.
        after: its cost after the cut.
        missed: why the budget could not be met; empty if it is.
        groups: what happens to each group.
        cut: the channels to remove, by layer.
        latency_table: for a latency budget, the hash of the table that it was planned with.
        order: for a consensus of rankings, the one whose order this plan uses.
        tried: for a consensus, the measured divergence in nats of the cut of every order
            (:func:`~secateur.prune.widths.ranking_choice.best_plan`).
        branches: the loss of the whole branches that it removes, if that was measured.
    """

    resource: str
    fraction: float
    before: Cost
    after: Cost
    missed: str
    groups: tuple[GroupPlan, ...]
    cut: Cut = field(repr=False)
    latency_table: str = ""
    order: str = ""
    tried: Mapping[str, float] = field(default_factory=dict)
    branches: WholeBranches | None = None

    def revised(self, groups: Sequence[ChannelGroup], costs: CostModel) -> "PruningPlan":
        """The plan with ``cut`` and costs computed again from ``removed`` of each group, which may have been edited by hand.

        Raises:
            InputError: a group or unit does not exist, a group is locked, or all units of a group are removed.
        """
        removed = {group.name: group.removed for group in self.groups}
        cut = cut_of(groups, removed)
        if dict(self.cut) == cut:
            return self
        costs = costs.along(groups)
        after = costs.of_cut(cut)
        missed = ""
        if self.resource != "latency" or costs.times is not None:  # without the table only a measurement can judge it
            used, whole = costs.amount(self.resource, cut), costs.amount(self.resource)
            missed = f"the edited plan leaves {used / whole:.3f}" if used > self.fraction * whole else ""
        by_name = {group.name: group for group in groups}
        rows = tuple(
            replace(group, saves=savings(by_name[group.name], group.removed, costs))
            for group in self.groups
            if group.name in by_name
        )
        return replace(self, cut=cut, after=after, missed=missed, groups=rows, branches=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "resource": self.resource,
            "fraction": self.fraction,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "missed": self.missed,
            "groups": [_group_to_json(group) for group in self.groups],
            "cut": cut_to_json(self.cut),
            **({"latency_table": self.latency_table} if self.latency_table else {}),
            **({"order": self.order, "tried": dict(self.tried)} if self.order else {}),
            **({"branches": asdict(self.branches)} if self.branches else {}),
        }

    def save(self, path: Path) -> None:
        """Write as JSON; equal plans give equal bytes."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing, is not JSON, or holds no plan.
        """
        values = read_json(path)
        try:
            groups = tuple(
                GroupPlan(
                    **{
                        **group,
                        "layers": tuple(group["layers"]),
                        "removed": tuple(group["removed"]),
                        "counted": tuple(group["counted"]),
                        "scores": tuple(group["scores"]),
                        "rounds": tuple(group.get("rounds", ())),
                        "saves": Cost(**group["saves"]),
                    }
                )
                for group in (_without(group, "kept") for group in values["groups"])
            )
            return cls(
                values["resource"],
                values["fraction"],
                Cost(**values["before"]),
                Cost(**values["after"]),
                values["missed"],
                groups,
                cut_from_json(values["cut"]),
                values.get("latency_table", ""),
                values.get("order", ""),
                values.get("tried", {}),
                _branches_from_json(values.get("branches")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not a plan of secateur ({error}). Run `secateur plan` to write one."
            ) from error


def savings(group: ChannelGroup, removed: Sequence[int], costs: CostModel) -> Cost:
    """What removing units of one group alone would save."""
    counts: dict[tuple[str, Side], int] = defaultdict(int)
    for member in group.members:
        counts[member.layer, member.side] += len({channel for unit in removed for channel in member.channels[unit]})
    return costs.of({}) - costs.of(counts)


def _group_to_json(group: GroupPlan) -> dict[str, Any]:
    return {
        "name": group.name,
        "layers": list(group.layers),
        "units": group.units,
        "kept": group.kept,
        "removed": list(group.removed),
        "step": group.step,
        "saves": group.saves.to_json(),
        "decided_by": group.decided_by,
        "counted": list(group.counted),
        "scores": list(group.scores),
        "locked": group.locked,
        **({"rounds": list(group.rounds)} if group.rounds else {}),
    }


def _branches_from_json(values: dict[str, Any] | None) -> WholeBranches | None:
    return WholeBranches(**{**values, "names": tuple(values["names"])}) if values else None


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}
