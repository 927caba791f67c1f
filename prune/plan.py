"""Scores, costs and a budget to a plan of what goes and what stays. Pure: no network, no device."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.errors import InputError, UsageError
from ..common.files import read_json, write_json
from ..explain.unit_scores import UnitScores
from ..network.channels.cut import Cut, cut_from_json, cut_of, cut_to_json
from ..network.channels.group import ChannelGroup, Side
from .cost import Cost, CostModel
from .settings import BudgetSettings
from .widths.sensitivity import Sensitivity
from .widths.width_book import WidthBook, alignment


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one group.

    ``removed`` are the units that go; ``step`` is the alignment in units; ``saves`` what removing them alone saves.
    ``scores`` holds one number per unit (empty for a locked group), ``decided_by`` the method, ``counted`` its layers.
    ``rounds``, after several rounds, is the one in which each unit went, 0 where it stays; scores are of the last round that
    saw the unit.
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
        """Whether the width that is left is a multiple of the step, or the whole."""
        return not self.removed or self.kept % self.step == 0


@dataclass(frozen=True)
class PruningPlan:
    """What to cut. ``cut`` lists the channels by layer; ``missed`` says how the budget was missed, or is empty.

    ``latency_table``: the hash of the table that a latency budget was planned by; ``fraction`` is of its milliseconds then.
    ``order``, where several rankings stand behind one, is the choice that this plan goes by; ``tried`` says how far, in nats,
    each choice's cut was measured to be from the original (:func:`~secateur.prune.orders.best_plan`).
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

    def revised(self, groups: Sequence[ChannelGroup], costs: CostModel) -> "PruningPlan":
        """The plan with ``cut`` and costs made anew from what each group removes, so that ``removed`` may be edited by hand.

        Raises:
            InputError: a group or unit that the network does not have, a locked group, or a group without units.
        """
        removed = {group.name: group.removed for group in self.groups}
        cut = cut_of(groups, removed)
        if dict(self.cut) == cut:
            return self
        after = costs.of_cut(cut)
        missed = ""
        if self.resource != "latency" or costs.times is not None:  # without the table only timing can tell
            used, whole = costs.amount(self.resource, cut), costs.amount(self.resource)
            missed = f"the edited plan leaves {used / whole:.3f}" if used > self.fraction * whole else ""
        by_name = {group.name: group for group in groups}
        rows = tuple(
            replace(group, saves=savings(by_name[group.name], group.removed, costs))
            for group in self.groups
            if group.name in by_name
        )
        return replace(self, cut=cut, after=after, missed=missed, groups=rows)

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
        }

    def save(self, path: Path) -> None:
        """Write as JSON; equal plans give equal bytes."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "PruningPlan":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: missing, not JSON, or not a plan.
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
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path} is not a plan of secateur ({error}). Run `secateur plan` to write one."
            ) from error


def plan_pruning(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, UnitScores],
    costs: CostModel,
    budget: BudgetSettings,
    sensitivity: Sensitivity | None = None,
    steps: Mapping[str, int] | None = None,
) -> PruningPlan:
    """Decide every group's width under a budget and remove its lowest units.

    With ``sensitivity`` the widths are those that lose least by it (:func:`~secateur.prune.allocation.allocate`), and whole
    residual branches may go. Without, uniform shares: every group loses the same share of its units, lowest scores first, as
    far as the budget asks. Groups inside blocks come first then; residual streams, each unit of which many layers write and
    read, lose units only once every other group has lost ``INNER_SHARE`` of its own. The shares are found by bisection; what
    rounding to aligned widths left unused is given back, an aligned step at a time, to the group that is furthest below its
    share. The result is never above the budget; if even the narrowest network is, the plan is that one and ``missed`` says so.
    ``steps`` are alignments settled in an earlier round, by group.

    Raises:
        UsageError: nothing can be cut, or ``round_to`` is wider than every group.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, images.train), "magnitude")
        >>> groups, costs = secateur.find_groups(network.module, network.example()), secateur.measure_cost(network)
        >>> units = secateur.score_units(groups, scores)
        >>> plan = secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.5))
        >>> [(group.name, group.units, group.kept) for group in plan.groups[:2]]  # uniform shares: no sensitivity was given
        [('stem.0', 32, 32), ('block1.conv1', 32, 16)]
    """
    if reason := obstacle(groups, budget.round_to):
        raise UsageError(reason)
    book = WidthBook(groups, scores, costs, budget, steps)
    kept = book.by_shares() if sensitivity is None else book.by_loss(sensitivity)
    return _plan_of(kept, groups, scores, costs, budget, book)


def keep_all(
    groups: Sequence[ChannelGroup], scores: Mapping[str, UnitScores], costs: CostModel, budget: BudgetSettings
) -> PruningPlan:
    """The plan that removes nothing; of ``budget`` only the resource and the alignment count."""
    book = WidthBook(groups, scores, costs, budget)
    return replace(_plan_of(book.whole, groups, scores, costs, budget, book), fraction=1.0, missed="")


def obstacle(groups: Sequence[ChannelGroup], round_to: str | int) -> str:
    """Why nothing in these groups can be cut, or nothing."""
    open_groups = [group for group in groups if not group.locked]
    if not open_groups:
        reasons = "; ".join(f"{group.name}: {group.locked.rstrip('.')}" for group in groups[:3])
        return f"Nothing in this network can be cut. {reasons}."
    if all(group.units <= alignment(group, round_to) for group in open_groups):
        return f"round_to {round_to} is as wide as every layer, so nothing can be cut. Lower it."
    return ""


def _plan_of(
    kept: Mapping[str, int],
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, UnitScores],
    costs: CostModel,
    budget: BudgetSettings,
    book: WidthBook,
) -> PruningPlan:
    """The plan that leaves these widths."""
    removed = book.removed(kept)
    cut = cut_of(groups, removed)
    before, after = costs.of({}), costs.of_cut(cut)
    missed = ""
    table = costs.times.sha256 if budget.resource == "latency" and costs.times else ""
    if book.used(kept) > book.limit:
        missed = (
            f"{budget.resource} {budget.fraction:g} was asked for; with every group at its narrowest "
            f"{book.used(kept) / book.used(book.whole):.3f} is left. What is locked, and widths of at least one "
            "aligned step, stay."
        )
    rows = []
    for group in groups:
        layers = tuple(member.layer for member in group.producers)
        if group.locked:
            rows.append(GroupPlan(group.name, layers, group.units, (), 1, before - before, "", (), (), group.locked))
            continue
        found = scores[group.name]
        rows.append(
            GroupPlan(
                group.name,
                layers,
                group.units,
                removed[group.name],
                book.steps[group.name],
                savings(group, removed[group.name], costs),
                found.method,
                found.counted,
                tuple(float(f"{value:.8g}") for value in found.values.tolist()),
                "",
            )
        )
    return PruningPlan(budget.resource, budget.fraction, before, after, missed, tuple(rows), cut, table)


def savings(group: ChannelGroup, removed: Sequence[int], costs: CostModel) -> Cost:
    """What removing units of one group alone saves."""
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


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}
