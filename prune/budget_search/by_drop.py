"""The smallest budget whose network still loses no more than it may, by bisection over tries. Pure: a try is handed in."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

FIRST, NARROWEST, RESOLUTION = 0.5, 0.05, 0.02
"""The first fraction tried, the one that is taken to fail untried, and how near the bounds must come before it ends."""


@dataclass(frozen=True)
class Trial:
    """One try: the ``fraction`` of the MACs asked for, what was ``left``, and the drop on validation images.

    ``points`` of top-1 accuracy lost, with the paired bootstrap 95% interval ``low`` to ``high``.
    """

    fraction: float
    left: float
    points: float
    low: float
    high: float

    @property
    def rank(self) -> tuple[float, float]:
        """Cheaper is lower; of equally cheap tries the one that surely loses less."""
        return self.left, self.high


@dataclass(frozen=True)
class Search:
    """All tries in the order in which they were made; ``chosen`` is the index of the one that won, None if none held."""

    max_drop: float
    trials: tuple[Trial, ...]
    chosen: int | None

    @property
    def missed(self) -> str:
        """Why nothing was cut, or nothing."""
        if self.chosen is not None:
            return ""
        best = min(self.trials, key=lambda trial: trial.high)
        return (
            f"no cut that was tried loses at most {self.max_drop:g} on validation images; with {best.left:.3f} of the MACs the "
            f"upper end of the interval is {best.high:.2f} points. Nothing was cut. Allow more, or bring more validation "
            "images."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the verdict on every try."""
        rows = [{**asdict(trial), "holds": trial.high <= self.max_drop} for trial in self.trials]
        return {"max_drop": self.max_drop, "chosen": self.chosen, "trials": rows}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Search":
        rows = ({key: value for key, value in row.items() if key != "holds"} for row in values["trials"])
        return cls(values["max_drop"], tuple(Trial(**row) for row in rows), values["chosen"])


def search(attempt: Callable[[float], Trial], max_drop: float) -> Search:
    """Find the cheapest network whose drop's upper bound is at most ``max_drop``.

    Bisection: the fraction of the MACs that is asked for halves the stretch between the largest one that failed and the
    smallest one that held, until they are ``RESOLUTION`` apart; six tries or fewer. Where the drop is not monotone the
    cheapest try that held wins all the same.
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
