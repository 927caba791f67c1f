"""The width of every group under a budget: by equal shares, or by the measured loss of narrower widths."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from ...explain.unit_scores import UnitScores
from ...network.channels.group import ChannelGroup, Side
from ..cost import CostModel
from ..latency_table import BLOCK
from ..settings import BudgetSettings
from .allocation import NEARBY, Widths, allocate
from .sensitivity import Sensitivity

INNER_SHARE = 0.75
"""The share of their units that groups inside blocks lose before residual streams lose any."""
COARSE_WIDTHS = 32
EFFORTS = 200
AUTOMATIC = (32, 16, 8, 4, 2, 1)


class WidthBook:
    """The cost of every choice of widths under a budget. A width is the number of units that a group keeps.

    Units are removed in the order of their scores, the lowest first. Only unlocked groups take part.

    Args:
        steps: alignments of widths, by group, that an earlier round chose.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        scores: Mapping[str, UnitScores],
        costs: CostModel,
        budget: BudgetSettings,
        steps: Mapping[str, int] | None = None,
    ) -> None:
        self.costs, self.resource = costs, budget.resource
        self.open = {group.name: group for group in groups if not group.locked}
        known = steps or {}
        self.steps = {name: known.get(name) or alignment(group, budget.round_to) for name, group in self.open.items()}
        self.order = {name: scores[name].values.argsort(stable=True).tolist() for name in self.open}
        self._layers: dict[str, list[str]] = {}
        self._touching: dict[str, list[tuple[str, list[int] | None, list[int] | None]]] = defaultdict(list)
        for name, group in self.open.items():
            leaving = self._leaving(group)
            self._layers[name] = sorted({layer for layer, _ in leaving} & costs.layers.keys())
            for layer in self._layers[name]:
                self._touching[layer].append((name, leaving.get((layer, "out")), leaving.get((layer, "in"))))
        self._amounts: dict[tuple[str, int, int], float] = {}
        self.whole = {name: group.units for name, group in self.open.items()}
        self._before = costs.amount(self.resource)
        self.limit = self._before * budget.fraction

    def used(self, kept: Mapping[str, int]) -> float:
        """The cost of the network at these widths."""
        return self._before - self.saved(self.whole, kept)

    def saved(self, kept: Mapping[str, int], changes: Mapping[str, int]) -> float:
        """The cost saved by changing the widths of some groups. Only the layers that they touch are computed."""
        total = 0.0
        for layer in {layer for name in changes for layer in self._layers[name]}:
            before_out = before_in = after_out = after_in = 0
            for name, out_prefix, in_prefix in self._touching[layer]:
                whole = self.whole[name]
                before = whole - kept[name]
                after = whole - changes[name] if name in changes else before
                if out_prefix is not None:
                    before_out += out_prefix[before]
                    after_out += out_prefix[after]
                if in_prefix is not None:
                    before_in += in_prefix[before]
                    after_in += in_prefix[after]
            total += self._amount(layer, before_out, before_in) - self._amount(layer, after_out, after_in)
        return total

    def removed(self, kept: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The units that every group loses at these widths."""
        return {name: tuple(sorted(order[: self.whole[name] - kept[name]])) for name, order in self.order.items()}

    def by_shares(self) -> Widths:
        """Equal shares: every group loses the same share of its units, the smallest that meets the budget.

        Groups inside blocks come first. Residual streams, which many layers write and read, lose units only once every other
        group has lost ``INNER_SHARE`` of its own; by time they lose units like the rest. The share is found by bisection; what
        rounding to aligned widths leaves of the budget is then used to widen groups again.
        """
        if self.resource == "latency":  # a narrower layer may be slower, so bisection could miss the least effort
            enough = next((kept for kept in self._all_shares() if self.used(kept) <= self.limit), None)
            return self.lowest(whole_branches=False) if enough is None else self._filled(enough)
        low, high = 0.0, 1.0
        if self.used(self._shares(high)) > self.limit:
            return self._shares(high)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.used(self._shares(middle)) <= self.limit else (middle, high)
        return self._filled(self._shares(high))

    def _filled(self, kept: Widths) -> Widths:
        """Use what is left of the budget: widen groups one aligned step at a time, the smallest kept share first."""
        while True:
            behind = sorted(
                (name for name, group in self.open.items() if 0 < kept[name] < group.units),
                key=lambda name: (not self.open[name].stream, kept[name] / self.open[name].units, name),
            )
            for name in behind:
                wider = {**kept, name: min(self.whole[name], (kept[name] // self.steps[name] + 1) * self.steps[name])}
                if self.used(wider) <= self.limit:
                    kept = wider
                    break
            else:
                return kept

    def by_loss(self, sensitivity: Sensitivity) -> Widths:
        """The widths with the least measured loss; a branch may be removed whole if its loss was measured."""
        branches = self._branches({name for name in self.open if sensitivity.curves[name][0][0] == 0})
        neighbours = {
            name: sorted({other for layer in layers for other, _, _ in self._touching[layer]})
            for name, layers in self._layers.items()
        }
        loss = {name: sensitivity.loss(name) for name in self.open}
        kept: Widths | None = None
        nearby = BLOCK if self.resource == "latency" else NEARBY  # latency falls by whole blocks of channels
        for most in (COARSE_WIDTHS, None):  # coarse widths first, then exchanges by single steps
            choices = {name: [*self._choices(name, most), *([0] if name in branches else [])] for name in self.open}
            kept = allocate(choices, loss, self.used, self.saved, neighbours, self.limit, branches, kept, nearby)
        assert kept is not None
        return self._filled(kept)

    def lowest(self, *, whole_branches: bool) -> Widths:
        """The widths that cost least of all that a plan may choose: with whole branches gone as by :meth:`by_loss`, or not.

        A narrower layer may take longer. By a latency table the lowest of the equal shares is exact; with whole branches it is
        what changes of single groups arrive at from the narrowest widths.
        """
        if not whole_branches:
            return min(self._all_shares(), key=self.used) if self.resource == "latency" else self._shares(1.0)
        kept = self._shares(1.0)
        for end, others in self._branches(set(self.open)).items():
            kept.update(dict.fromkeys((end, *others), 0))
        while self.resource == "latency":
            changes = {}
            for name in (name for name, width in kept.items() if width):
                savings = {width: self.saved(kept, {name: width}) for width in self._choices(name, None)}
                width = max(savings, key=savings.__getitem__)
                if savings[width] > 1e-9 * self._before:
                    kept[name] = changes[name] = width
            if not changes:
                break
        return kept

    def _all_shares(self) -> list[Widths]:
        """The widths of all efforts, where the cost does not fall with every one of them."""
        return [self._shares(step / EFFORTS) for step in range(EFFORTS + 1)]

    def _branches(self, measured: Set[str]) -> dict[str, tuple[str, ...]]:
        """Of every branch that may go whole the group that ends it, if that is among the ``measured``, and the others."""
        return {
            end: tuple(name for name, other in self.open.items() if other.branch == group.branch and name != end)
            for end, group in self.open.items()
            if group.branch and group.ends_branch and end in measured
        }

    def _choices(self, name: str, most: int | None) -> list[int]:
        """Aligned widths of a group, descending, about ``most`` of them if given."""
        units, step = self.whole[name], self.steps[name]
        stride = step * max(1, units // (step * most)) if most else step
        return sorted({units, min(step, units), *range(stride, units, stride)}, reverse=True)

    def _amount(self, layer: str, outputs_gone: int, inputs_gone: int) -> float:
        key = (layer, outputs_gone, inputs_gone)
        if key not in self._amounts:
            self._amounts[key] = self.costs.layer_amount(self.resource, layer, outputs_gone, inputs_gone)
        return self._amounts[key]

    def _shares(self, effort: float) -> Widths:
        """The width of every group at an effort in [0, 1], rounded to the alignment, at least one step.

        In the first half of the effort, groups inside blocks lose up to ``INNER_SHARE`` of their units; in the second half they
        lose the rest, and residual streams lose up to all of theirs. By time all lose alike: the sums and activations of a
        stream take longer than its MACs say.
        """
        first, second = min(1.0, 2 * effort), max(0.0, 2 * effort - 1)
        inner, streams = INNER_SHARE * first + (1 - INNER_SHARE) * second, second
        if self.resource == "latency":
            inner = streams = effort
        elif all(group.stream for group in self.open.values()):
            streams = effort
        result = {}
        for name, group in self.open.items():
            share = streams if group.stream else inner
            step = self.steps[name]
            wanted = (1 - share) * group.units
            aligned = max(step, step * math.floor(wanted / step + 0.5))
            result[name] = group.units if share == 0 or aligned >= group.units else aligned
        return result

    def _leaving(self, group: ChannelGroup) -> dict[tuple[str, Side], list[int]]:
        """For each layer the number of channels removed with the first 0, 1, 2, … units in the order of removal."""
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


def alignment(group: ChannelGroup, round_to: str | int) -> int:
    """The step of a group's width, in units. ``auto``: the largest of ``AUTOMATIC`` that is at most an eighth of the width.

    Runtimes work in blocks of channels; wide layers are fast only at multiples of large blocks.
    """
    root = group.members[0]
    channels_per_unit = max(1, len(root.channels[0]))
    if isinstance(round_to, int):
        wanted = round_to
    else:
        wanted = next(size for size in AUTOMATIC if size <= max(1, root.width // 8))
    return max(1, wanted // math.gcd(wanted, channels_per_unit))
