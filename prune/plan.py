"""Scores, costs and a budget to a plan of what goes and what stays. Pure: no network, no device."""

import difflib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..explain.ranking import UnitScores
from ..files import read_json, write_json
from ..network.channels import ChannelGroup, Cut, Side, cut_from_json, cut_of, cut_to_json
from ..recipe import BudgetSettings
from .allocation import allocate
from .cost import Cost, CostModel
from .sensitivity import Sensitivity

TOLERANCE = 0.02
"""A plan may stay below its budget by this fraction of the baseline, or by one aligned step, whichever is more."""
INNER_SHARE = 0.75
"""The share that groups inside blocks lose before residual streams are touched."""


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
    """What to cut. ``cut`` lists the channels by layer; ``missed`` says how the budget was missed, or is empty."""

    resource: str
    fraction: float
    before: Cost
    after: Cost
    missed: str
    groups: tuple[GroupPlan, ...]
    cut: Cut = field(repr=False)

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
        used, whole = (getattr(cost, _FIELD[self.resource]) for cost in (after, self.before))
        missed = f"the edited plan leaves {used / whole:.3f}" if used > self.fraction * whole else ""
        return replace(self, cut=cut, after=after, missed=missed)

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
) -> PruningPlan:
    """Decide every group's width under a budget and remove its lowest units.

    With ``sensitivity`` the widths are those that lose least by it (:func:`~secateur.prune.allocation.allocate`).
    Without, uniform shares: every group loses the same share of its units, lowest scores first, as far as the budget asks.

    Groups inside blocks come first; residual streams, each unit of which many layers write and read, lose units only
    once every other group has lost ``INNER_SHARE`` of its own. The shares are found by bisection. What rounding to
    aligned widths left unused is then given back, an aligned step at a time, to the group that is furthest below its
    share, for as long as the budget holds. The result is never above the budget; if even the narrowest network is, the
    plan is that one and ``missed`` says so.

    Raises:
        UsageError: nothing can be cut, or ``round_to`` is wider than every group.
    """
    if reason := obstacle(groups, budget.round_to):
        raise UsageError(reason)
    allocator = _Allocator(groups, scores, costs, budget)
    kept = allocator.allocate() if sensitivity is None else allocator.allocate_by_loss(sensitivity)
    return allocator.plan(kept)


def keep_all(
    groups: Sequence[ChannelGroup], scores: Mapping[str, UnitScores], costs: CostModel, budget: BudgetSettings
) -> PruningPlan:
    """The plan that removes nothing; of ``budget`` only the resource and the alignment count."""
    allocator = _Allocator(groups, scores, costs, budget)
    whole = allocator.plan({name: group.units for name, group in allocator.open.items()})
    return replace(whole, fraction=1.0, missed="")


def obstacle(groups: Sequence[ChannelGroup], round_to: str | int) -> str:
    """Why nothing in these groups can be cut, or nothing."""
    open_groups = [group for group in groups if not group.locked]
    if not open_groups:
        reasons = "; ".join(f"{group.name}: {group.locked}" for group in groups[:3])
        return f"Nothing in this network can be cut. {reasons}"
    if all(group.units <= _step(group, round_to) for group in open_groups):
        return f"round_to {round_to} is as wide as every layer, so nothing can be cut. Lower it."
    return ""


class _Allocator:
    """Widths of open groups under a budget. A width is how many units a group keeps."""

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        scores: Mapping[str, UnitScores],
        costs: CostModel,
        budget: BudgetSettings,
    ) -> None:
        self.groups, self.scores, self.costs, self.budget = groups, scores, costs, budget
        self.open = {group.name: group for group in groups if not group.locked}
        self.steps = {name: _step(group, budget.round_to) for name, group in self.open.items()}
        self.order = {
            name: sorted(range(group.units), key=lambda unit, name=name: (float(scores[name].values[unit]), unit))  # type: ignore[misc]
            for name, group in self.open.items()
        }
        self.prefix = {name: self._prefix(group) for name, group in self.open.items()}
        self.touching: dict[tuple[str, str], list[tuple[str, list[int]]]] = defaultdict(list)
        for name, prefixes in self.prefix.items():
            for (layer, side), prefix in prefixes.items():
                self.touching[layer, side].append((name, prefix))
        self.before = costs.of({})
        self.limit = getattr(self.before, _FIELD[budget.resource]) * budget.fraction

    def allocate(self) -> dict[str, int]:
        low, high = 0.0, 1.0
        if self._used(self._widths(high)) > self.limit:
            return self._widths(high)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self._used(self._widths(middle)) <= self.limit else (middle, high)
        kept = self._widths(high)
        while True:
            behind = sorted(
                (name for name, group in self.open.items() if kept[name] < group.units),
                key=lambda name: (not self.open[name].stream, kept[name] / self.open[name].units, name),
            )
            for name in behind:
                wider = {**kept, name: self._next(name, kept[name])}
                if self._used(wider) <= self.limit:
                    kept = wider
                    break
            else:
                return kept

    def allocate_by_loss(self, sensitivity: Sensitivity) -> dict[str, int]:
        """Widths that lose least by measured sensitivities."""
        choices = {}
        for name, group in self.open.items():
            step = self.steps[name]
            choices[name] = sorted({group.units, *range(step, group.units, step)}, reverse=True)
        touching: dict[str, set[str]] = defaultdict(set)
        for name in self.open:
            for layer, _ in self.prefix[name]:
                touching[layer].add(name)
        neighbours = {
            name: sorted({other for layer, _ in prefix for other in touching[layer]})
            for name, prefix in self.prefix.items()
        }
        loss = {name: sensitivity.loss(name) for name in self.open}
        return allocate(choices, loss, self._used, self._saved, neighbours, self.limit)

    def _saved(self, kept: Mapping[str, int], name: str, width: int) -> float:
        """What changing one group's width saves: only the layers that it touches are reckoned."""
        field = _FIELD[self.budget.resource]
        layers = sorted({layer for layer, _ in self.prefix[name]})
        sides: tuple[Side, Side] = ("out", "in")
        total = 0.0
        for layer in layers:
            shape = self.costs.layers.get(layer)
            if shape is None:
                continue
            before = [self._gone(layer, side, kept) for side in sides]
            after = list(before)
            for index, side in enumerate(sides):
                prefix = self.prefix[name].get((layer, side))
                if prefix is not None:
                    units = self.open[name].units
                    after[index] += prefix[units - width] - prefix[units - kept[name]]
            total += getattr(shape.cost(*before), field) - getattr(shape.cost(*after), field)
        return total

    def _gone(self, layer: str, side: str, kept: Mapping[str, int]) -> int:
        return sum(prefix[self.open[name].units - kept[name]] for name, prefix in self.touching[layer, side])

    def plan(self, kept: Mapping[str, int]) -> PruningPlan:
        removed = {
            name: tuple(sorted(self.order[name][: group.units - kept[name]])) for name, group in self.open.items()
        }
        after = self.costs.of(self._removed(kept))
        used = getattr(after, _FIELD[self.budget.resource])
        missed = ""
        if used > self.limit:
            whole = getattr(self.before, _FIELD[self.budget.resource])
            missed = (
                f"{self.budget.resource} {self.budget.fraction:g} was asked for; with every group at its narrowest "
                f"{used / whole:.3f} is left. What is locked, and widths of at least one aligned step, stay."
            )
        return PruningPlan(
            self.budget.resource,
            self.budget.fraction,
            self.before,
            after,
            missed,
            tuple(self._group_plan(group, removed.get(group.name, ()), kept) for group in self.groups),
            cut_of(self.groups, removed),
        )

    def _group_plan(self, group: ChannelGroup, removed: tuple[int, ...], kept: Mapping[str, int]) -> GroupPlan:
        layers = tuple(member.layer for member in group.producers)
        if group.locked:
            return GroupPlan(group.name, layers, group.units, (), 1, Cost(0, 0, 0), "", (), (), group.locked)
        alone = self.costs.of(self._removed({group.name: kept[group.name]}))
        saves = self.before - alone
        scores = self.scores[group.name]
        return GroupPlan(
            group.name,
            layers,
            group.units,
            removed,
            self.steps[group.name],
            saves,
            scores.method,
            scores.counted,
            tuple(float(f"{value:.8g}") for value in scores.values.tolist()),
            "",
        )

    def _widths(self, effort: float) -> dict[str, int]:
        """Every group's width, the nearest aligned one and at least one step.

        ``effort`` in [0, 1]: in the first half the groups inside blocks lose up to ``INNER_SHARE``, in the second half
        the streams lose up to all, and the others the rest.
        """
        first, second = min(1.0, 2 * effort), max(0.0, 2 * effort - 1)
        inner, streams = INNER_SHARE * first + (1 - INNER_SHARE) * second, second
        if all(group.stream for group in self.open.values()):
            streams = effort
        result = {}
        for name, group in self.open.items():
            share = streams if group.stream else inner
            step = self.steps[name]
            wanted = (1 - share) * group.units
            aligned = max(step, step * math.floor(wanted / step + 0.5))
            result[name] = group.units if share == 0 or aligned >= group.units else aligned
        return result

    def _next(self, name: str, width: int) -> int:
        step = self.steps[name]
        return min(self.open[name].units, (width // step + 1) * step)

    def _used(self, kept: Mapping[str, int]) -> float:
        return float(getattr(self.costs.of(self._removed(kept)), _FIELD[self.budget.resource]))

    def _removed(self, kept: Mapping[str, int]) -> dict[tuple[str, Side], int]:
        counts: dict[tuple[str, Side], int] = defaultdict(int)
        for name, width in kept.items():
            gone = self.open[name].units - width
            if gone:
                for key, prefix in self.prefix[name].items():
                    counts[key] += prefix[gone]
        return counts

    def _prefix(self, group: ChannelGroup) -> dict[tuple[str, Side], list[int]]:
        """For each layer how many channels leave it with the first 0, 1, 2, … units in the order of removal."""
        result: dict[tuple[str, Side], list[int]] = {}
        for member in group.members:
            running = [0]
            for unit in self.order[group.name]:
                running.append(running[-1] + len(member.channels[unit]))
            known = result.get((member.layer, member.side))
            result[member.layer, member.side] = (
                running if known is None else [a + b for a, b in zip(known, running, strict=True)]
            )
        return result


_FIELD = {"macs": "macs", "params": "parameters", "size": "bytes"}


def explain_layer(
    plan: PruningPlan, groups: Sequence[ChannelGroup], layer: str
) -> list[tuple[int, float | None, bool, str]]:
    """For every kernel of a layer: (index, score of its unit, whether it stays, why).

    Raises:
        InputError: the plan has no such layer; those it has are listed.
    """
    for group, decided in ((one, two) for one in groups for two in plan.groups if one.name == two.name):
        member = next((member for member in group.producers if member.layer == layer), None)
        if member is None:
            continue
        unit_of = {channel: unit for unit, channels in enumerate(member.channels) for channel in channels}
        last = max((max(one.rounds, default=0) for one in plan.groups), default=0)
        compared = [unit for unit in range(decided.units) if not decided.rounds or decided.rounds[unit] in (0, last)]
        order = sorted(compared, key=lambda unit: -decided.scores[unit]) if decided.scores else []
        rank = {unit: place for place, unit in enumerate(order, 1)}
        when = f" in round {last}" if decided.rounds else ""
        removed = set(decided.removed)
        rows: list[tuple[int, float | None, bool, str]] = []
        for channel in range(member.width):
            unit = unit_of[channel]
            if not decided.scores:
                rows.append((channel, None, True, f"the group {group.name} stays whole: {decided.locked}"))
                continue
            others = [name for name in decided.layers if name != layer]
            shared = f", cut together with {', '.join(others)}" if others else ""
            if decided.rounds and decided.rounds[unit]:
                why = f"{decided.decided_by} ranked its unit among the lowest in round {decided.rounds[unit]}{shared}"
            else:
                place = f"{rank[unit]} of {len(compared)}{when}"
                why = f"{decided.decided_by} ranks its unit {place}; {decided.kept} stay{shared}"
            rows.append((channel, decided.scores[unit], unit not in removed, why))
        return rows
    known = [name for group in plan.groups for name in group.layers]
    near = difflib.get_close_matches(layer, known, n=3) or known[:8]
    raise InputError(
        f"The plan has no layer {layer!r}. It has: {', '.join(near)}{', …' if len(near) < len(known) else ''}."
    )


def _step(group: ChannelGroup, round_to: str | int) -> int:
    """The alignment of a group's width, in units."""
    root = group.members[0]
    channels_per_unit = max(1, len(root.channels[0]))
    if isinstance(round_to, int):
        wanted = round_to
    else:
        wanted = next(size for size in (8, 4, 2, 1) if size <= max(1, root.width // 8))
    return max(1, wanted // math.gcd(wanted, channels_per_unit))


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
