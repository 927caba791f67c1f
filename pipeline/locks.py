"""What locked groups cost a run: reported before its work begins, compared with the budget, and part of the report."""

from ..common.errors import BudgetError
from ..common.progress import Observer
from ..network.provenance.parts import HEAD_LOCK
from ..prune.locked_share import SMALLEST_SHARE, LockedShare, measure_locks, percentages, rounded_up
from ..prune.settings import BudgetSettings
from .stages.ranking import Channels


def locks_of(channels: Channels, budget: BudgetSettings) -> LockedShare:
    """The locks of a network, their cost, and the lowest budgets that plans can reach."""
    return measure_locks(channels.groups, channels.costs, budget)


def report_locks(channels: Channels, budget: BudgetSettings, observer: Observer) -> None:
    """Say which groups stay whole, why, and what that costs, before hours are spent. The head goes without saying."""
    locks = locks_of(channels, budget)
    for note in (*lock_notes(locks), *in_words(locks)):
        observer.say(note)


def check_reachable(channels: Channels, budget: BudgetSettings, observer: Observer) -> LockedShare:
    """Compare the budget with the lowest that a plan can reach; the costs know measured times where latency counts.

    Raises:
        BudgetError: it is lower, and the settings do not say that the best effort will do.
    """
    locks = locks_of(channels, budget)
    if reason := refusal(locks, budget):
        raise BudgetError(reason)
    if reason := locks.unreachable(budget):
        observer.say(f"Best effort: {reason}")
    return locks


def refusal(locks: LockedShare, budget: BudgetSettings) -> str:
    """Why a run to a budget would be of no use, and what to do; empty where it can be reached or the best effort will do."""
    reason = locks.unreachable(budget)
    return f"budget missed: {reason} {locks.advice(budget)}" if reason and not budget.best_effort else ""


def lock_notes(locks: LockedShare) -> list[str]:
    """One sentence for every locked group but the head."""
    notes = []
    for lock in locks.locks:
        if lock.reason == HEAD_LOCK:
            continue
        for group in lock.groups:
            others = [layer for layer in group.layers if layer != group.name]
            name = f"{group.name} (with {', '.join(others)})" if others else group.name
            notes.append(f"{name} stays whole ({percentages(group.shares)}): {lock.reason}")
    return notes


def in_words(locks: LockedShare) -> list[str]:
    """The shares and the lowest budgets in a few lines."""
    held = f"Locked groups, the head included, hold {percentages(locks.shares)}."
    lowest = ", ".join(f"{resource} {rounded_up(value):g}" for resource, value in locks.lowest.items())
    lines = [held, f"Lowest budgets that can be reached: {lowest}."]
    outside = {resource: value for resource, value in locks.outside.items() if value >= SMALLEST_SHARE}
    if outside:
        lines.insert(1, f"Outside all groups, whatever is cut: {percentages(outside)}.")
    return lines
