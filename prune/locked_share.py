"""What locked groups cost, and the lowest budget that a plan can reach. Pure arithmetic on groups and costs, without scores."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..explain.unit_scores import UnitScores
from ..network.channels.group import ChannelGroup
from .cost import CostModel
from .settings import BudgetSettings
from .widths.width_book import WidthBook

TABLE_ERROR = 0.25
"""The lowest estimate may exceed a latency budget by this share of it before the budget counts as out of reach: a table adds up
layers that were timed one by one, and the exported file may be faster."""
SMALLEST_SHARE = 0.0005
"""The smallest share that is worth naming: less shows as 0.0%."""
WORDS = {"macs": "MACs", "params": "parameters", "size": "bytes of weights", "latency": "estimated latency"}

Shares = Mapping[str, float]
"""Resource (macs, params, size or latency, as a budget names it) to a fraction of the whole network's."""


@dataclass(frozen=True)
class LockedGroup:
    """A group that stays whole. ``layers`` are those whose kernels produce its units; ``shares`` is their share of the cost."""

    name: str
    layers: tuple[str, ...]
    units: int
    shares: Shares


@dataclass(frozen=True)
class Lock:
    """A reason for which groups stay whole, with these groups and their share of the cost together."""

    reason: str
    groups: tuple[LockedGroup, ...]
    shares: Shares


@dataclass(frozen=True)
class LockedShare:
    """What locks cost.

    Attributes:
        locks: every reason with its groups, the most MACs first.
        shares: the share of macs, params and, with a table, latency in layers whose own kernels all stay. Such a layer may
            still become cheaper, as it reads fewer channels.
        outside: the share that belongs to no group, such as matrix products outside layers.
        lowest: by resource, the lowest budget that a plan of these settings can reach.
    """

    locks: tuple[Lock, ...]
    shares: Shares
    outside: Shares
    lowest: Shares

    def unreachable(self, budget: BudgetSettings) -> str:
        """Why no plan can meet a budget; empty if one can."""
        resource = budget.resource
        lowest = self.lowest.get(resource)
        if budget.max_drop is not None or lowest is None:
            return ""
        if budget.fraction * (1 + TABLE_ERROR if resource == "latency" else 1) >= lowest:
            return ""
        by = " by the latency table" if resource == "latency" else ""
        return (
            f"{resource} {budget.fraction:g} cannot be reached: with every group at its narrowest {lowest:.3g} of the "
            f"{WORDS[resource]} is left{by}. {self.in_words(resource)}"
        )

    def advice(self, budget: BudgetSettings) -> str:
        """What to do about a budget out of reach."""
        lowest = rounded_up(self.lowest[budget.resource])
        return f"Give --{budget.resource} {lowest:g} or more, or --best-effort to get as close as possible."

    def in_words(self, resource: str = "macs") -> str:
        """What the locked groups hold, and the reasons that hold most of a resource."""
        if not self.locks:
            return "No group is locked, but each keeps at least one step of its alignment."
        known = resource if resource in self.shares else "params"  # bytes are those of parameters
        held = sorted(self.locks, key=lambda lock: -lock.shares[known])
        largest = [
            f"{100 * lock.shares[known]:.1f}% in {_several([group.name for group in lock.groups])}: {lock.reason.rstrip('.')}"
            for lock in held[:3]
            if lock.shares[known] >= SMALLEST_SHARE
        ]
        named = f" ({'; '.join(largest)})" if largest else ""
        return f"Locked groups hold {percentages(self.shares)}{named}."

    def to_json(self) -> dict[str, Any]:
        return {
            "shares": dict(self.shares),
            "outside": dict(self.outside),
            "lowest": dict(self.lowest),
            "locks": [asdict(lock) for lock in self.locks],
        }


def measure_locks(groups: Sequence[ChannelGroup], costs: CostModel, budget: BudgetSettings) -> LockedShare:
    """What the locked groups cost, and the lowest budgets that plans with this allocation and alignment can reach.

    Costs are exact; with a latency table (``costs.times``) there are estimated latencies too. Of ``budget`` only ``allocation``
    and ``round_to`` count.

    Examples:
        >>> import secateur
        >>> from secateur.prune.locked_share import measure_locks
        >>> network = secateur.load_model("digits")
        >>> groups, costs = secateur.find_groups(network.module, network.example()), secateur.measure_cost(network)
        >>> found = measure_locks(groups, costs, secateur.BudgetSettings(allocation="uniform"))
        >>> [group.name for lock in found.locks for group in lock.groups]  # the classes
        ['head']
        >>> found.unreachable(secateur.BudgetSettings(macs=0.5))
        ''
    """
    costs = costs.along(groups)
    by_reason: dict[str, list[LockedGroup]] = {}
    for group in groups:
        if group.locked:
            layers = tuple(dict.fromkeys(member.layer for member in group.producers))
            found = LockedGroup(group.name, layers, group.units, group_shares(group, costs))
            by_reason.setdefault(group.locked, []).append(found)
    locks = [
        Lock(reason, tuple(held), _sum(costs, (group.shares for group in held))) for reason, held in by_reason.items()
    ]
    every = _sum(costs, (group_shares(group, costs) for group in groups))
    return LockedShare(
        tuple(sorted(locks, key=lambda lock: -lock.shares["macs"])),
        _sum(costs, (lock.shares for lock in locks)),
        {resource: 1 - value if value < 1 - 1e-9 else 0.0 for resource, value in every.items()},
        {
            resource: lowest_fraction(groups, costs, budget, resource)
            for resource in ("macs", "params", "size", *_timed(costs))
        },
    )


def group_shares(group: ChannelGroup, costs: CostModel) -> dict[str, float]:
    """The share of macs, params and, with a table, latency in the layers whose output channels are the group's.

    A layer that several groups share out counts by its channels.
    """
    channels: dict[str, set[int]] = {}
    for member in group.members:
        if member.side == "out" and member.layer in costs.layers:
            channels.setdefault(member.layer, set()).update(channel for unit in member.channels for channel in unit)
    result = {}
    for resource in ("macs", "params", *_timed(costs)):
        held = sum(
            costs.layer_amount(resource, layer, 0, 0) * len(own) / costs.layers[layer].outputs
            for layer, own in channels.items()
        )
        result[resource] = held / costs.amount(resource)
    return result


def lowest_fraction(groups: Sequence[ChannelGroup], costs: CostModel, budget: BudgetSettings, resource: str) -> float:
    """The lowest budget of a resource, as a fraction, that :func:`~secateur.prune.planning.plan_pruning` can meet.

    It is 1 where every group is locked.
    """
    if all(group.locked for group in groups):
        return 1.0
    widest_first = {
        group.name: UnitScores("", torch.tensor([-float(_channels(group, unit)) for unit in range(group.units)]), ())
        for group in groups
        if not group.locked
    }
    one = BudgetSettings(**{resource: 0.5}, round_to=budget.round_to)  # type: ignore[arg-type]
    book = WidthBook(groups, widest_first, costs, one)
    used = book.used(book.lowest(whole_branches=budget.allocation == "sensitivity"))
    whole = costs.amount(resource)
    fraction: float = used / whole
    return fraction if whole * fraction >= used else math.nextafter(fraction, math.inf)


def rounded_up(value: float) -> float:
    """A fraction to three significant digits, never below it, as it can be given as a budget."""
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale


def percentages(shares: Shares) -> str:
    """Shares in words: ``12.3% of the MACs and 4.5% of the parameters``."""
    parts = [f"{100 * value:.1f}% of the {WORDS[resource]}" for resource, value in shares.items()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _timed(costs: CostModel) -> tuple[str, ...]:
    return ("latency",) if costs.times is not None else ()


def _channels(group: ChannelGroup, unit: int) -> int:
    """How many channels, of all layers, leave with a unit."""
    return sum(len(member.channels[unit]) for member in group.members)


def _sum(costs: CostModel, shares: Iterable[Shares]) -> dict[str, float]:
    known = list(shares)
    return {resource: sum(one[resource] for one in known) for resource in ("macs", "params", *_timed(costs))}


def _several(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
