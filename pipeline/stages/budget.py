"""Prune to a recipe's budget, of any kind."""

from dataclasses import dataclass

from ...export.measure.variants import Attempt
from ...prune.budget_search.by_drop import Search, Trial
from ...prune.budget_search.by_latency import LatencyOutcome
from ..inputs import Inputs
from .candidates import Candidate, Candidates, search_by_drop
from .latency_budget import TimedLayers, search_by_latency
from .ranking import Ranked
from .shipped_files import attempt_stage
from .store import StageStore


@dataclass(frozen=True)
class Pruned:
    """The candidate that is exported, and the search that led to it, if any.

    ``attempts`` are the other candidates of a search by drop, exported to be measured for comparison.
    """

    candidate: Candidate
    search: Search | None = None
    latency: LatencyOutcome | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def missed(self) -> str:
        """Why the budget was missed; empty if it was met."""
        if self.search is not None:
            return self.search.missed
        if self.latency is not None:
            return self.latency.missed
        return self.candidate.plan.missed


def prune_to_budget(
    inputs: Inputs, ranked: Ranked, timed: TimedLayers | None, provider: str, store: StageStore
) -> Pruned:
    """Plan, cut, repair and fine-tune until the budget of the recipe is met; a missed budget is reported with the reason."""
    candidates, budget = Candidates(inputs, ranked, store), inputs.recipe.budget
    if timed is not None:
        found, outcome = search_by_latency(candidates, timed, provider)
        pruned = Pruned(found, latency=outcome)
    elif budget.max_drop is not None:
        attempts: list[Attempt] = []

        def keep(tried: Candidate, trial: Trial) -> None:
            attempts.append(store.run(attempt_stage(inputs, tried, trial)))

        found, search = search_by_drop(candidates, budget.max_drop, keep)
        shipped = None if search.chosen is None else search.trials[search.chosen].fraction
        others = tuple(attempt for attempt in attempts if attempt.fraction != shipped)
        pruned = Pruned(found, search=search, attempts=others)
    else:
        pruned = Pruned(candidates.make(budget))
    if pruned.missed:
        store.observer.say(f"Budget missed: {pruned.missed}")
    return pruned
