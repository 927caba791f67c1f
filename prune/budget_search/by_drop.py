"""The search for the smallest network within a drop in accuracy, by bisection. Pure: the caller passes what makes a try."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

FIRST, NARROWEST, RESOLUTION = 0.5, 0.05, 0.02
"""The first fraction tried, the one assumed to fail without a try, and how close the bounds must be for the search to end."""


@dataclass(frozen=True)
class Trial:
    """One try.

    Attributes:
        fraction: the fraction of the MACs that was asked for.
        left: the fraction of the MACs that was left.
        points: the drop of top-1 accuracy on validation images, in points.
        low: the lower end of its paired bootstrap 95% interval.
        high: the upper end.
    """

    fraction: float
    left: float
    points: float
    low: float
    high: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts by MACs left, ties by the upper end of the drop."""
        return self.left, self.high


@dataclass(frozen=True)
class Search:
    """All tries in order; ``chosen`` is the index of the best one, None if none is within ``max_drop``."""

    max_drop: float
    trials: tuple[Trial, ...]
    chosen: int | None

    @property
    def missed(self) -> str:
        """Why nothing was cut; empty if something was."""
        if self.chosen is not None:
            return ""
        best = min(self.trials, key=lambda trial: trial.high)
        return (
            f"no cut that was tried loses at most {self.max_drop:g} points on validation images; with {best.left:.3f} of the "
            f"MACs the upper end of the interval is {best.high:.2f} points. Nothing was cut. Allow a larger drop, or use more "
            "validation images."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``holds`` says whether a try is within the drop."""
        rows = [{**asdict(trial), "holds": trial.high <= self.max_drop} for trial in self.trials]
        return {"max_drop": self.max_drop, "chosen": self.chosen, "trials": rows}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Search":
        rows = ({key: value for key, value in row.items() if key != "holds"} for row in values["trials"])
        return cls(values["max_drop"], tuple(Trial(**row) for row in rows), values["chosen"])


def search(attempt: Callable[[float], Trial], max_drop: float) -> Search:
    """Find the cheapest network whose drop's upper bound is at most ``max_drop``.

    Bisection of the fraction of the MACs: the next try lies halfway between the largest fraction that failed and the smallest
    that held, until they are ``RESOLUTION`` apart, which takes at most six tries. The cheapest try that held is chosen, also
    where the drop is not monotone.
    """
    failed, held = NARROWEST, 1.0
    trials: list[Trial] = []
    fraction = FIRST
    while held - failed > RESOLUTION + 1e-9:
        trial = attempt(fraction)
        trials.append(trial)
        if trial.high <= max_drop:
            held = fraction
        else:
            failed = fraction
        fraction = (failed + held) / 2
    holding = [index for index, trial in enumerate(trials) if trial.high <= max_drop]
    chosen = min(holding, key=lambda index: trials[index].rank, default=None)
    return Search(max_drop, tuple(trials), chosen)
