"""The pruned network that a recipe's budget asks for, whatever the kind of budget."""

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
    """The candidate that is shipped, and the search that led to it, if there was one.

    ``attempts`` are the candidates of a search by drop that are not shipped, exported to be measured beside it.
    """

    candidate: Candidate
    search: Search | None = None
    latency: LatencyOutcome | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def missed(self) -> str:
        """Why the budget was missed, or nothing."""
        if self.search is not None:
            return self.search.missed
        if self.latency is not None:
            return self.latency.missed
        return self.candidate.plan.missed


def prune_to_budget(
    inputs: Inputs, ranked: Ranked, timed: TimedLayers | None, provider: str, store: StageStore
) -> Pruned:
    """Plan, cut, repair and fine-tune until the budget of the recipe is met, or say why it is missed."""
    candidates, budget = Candidates(inputs, ranked, store), inputs.recipe.budget
    if timed is not None:
        found, outcome = search_by_latency(candidates, timed, provider)
        pruned = Pruned(found, latency=outcome)
    elif budget.max_drop is not None:
        attempts: list[Attempt] = []

        def keep(tried: Candidate, trial: Trial) -> None:
            attempts.append(store.run(attempt_stage(tried, trial)))

        found, search = search_by_drop(candidates, budget.max_drop, keep)
        shipped = None if search.chosen is None else search.trials[search.chosen].fraction
        others = tuple(attempt for attempt in attempts if attempt.fraction != shipped)
        pruned = Pruned(found, search=search, attempts=others)
    else:
        pruned = Pruned(candidates.make(budget))
    if pruned.missed:
        store.observer.say(f"Budget missed: {pruned.missed}")
    return pruned
