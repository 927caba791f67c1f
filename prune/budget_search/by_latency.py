"""The search for a latency budget: plan with the table, time the cut network, plan again. Pure: the caller
passes what makes a try.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..latency_table import LatencyTable

MOST_TRIES, STEP = 6, 0.005
"""The most tries, and the step that targets are rounded to, so that noise rarely leads to another plan."""
ROOM, CLOSE, TOLERANCE = 0.05, 0.01, 0.05
"""As shares of the latency asked for: a try at most ``ROOM`` below or ``CLOSE`` above it ends the search; the shipped file,
which is measured later and in another process, passes at up to ``TOLERANCE`` above it."""
NARROWEST, BOLD = 0.05, 0.6
"""The smallest target; and, while no try was fast enough, the smallest ratio of the next target to the lowest so far."""


@dataclass(frozen=True)
class LatencyTry:
    """One cut; latencies are fractions of the baseline's.

    Attributes:
        target: the latency that the planner was given.
        planned: the latency of the plan by the table.
        measured: the measured median.
        low: the lower end of its interval.
        high: the upper end.
        narrowest: whether no narrower plan exists.
    """

    target: float
    planned: float
    measured: float
    low: float
    high: float
    narrowest: bool = False


@dataclass(frozen=True)
class LatencySearch:
    """All tries in order; ``chosen`` is the index of the one that is shipped."""

    asked: float
    tries: tuple[LatencyTry, ...]
    chosen: int

    @property
    def best(self) -> LatencyTry:
        return self.tries[self.chosen]

    def missed(self, measured: float) -> str:
        """Why the shipped file, measured again, is too slow; empty if it is fast enough."""
        if measured <= self.asked * (1 + TOLERANCE):
            return ""
        floor = min(self.tries, key=lambda one: one.measured)
        if self.best.narrowest or floor.target <= NARROWEST:
            least = "every group at its narrowest" if floor.narrowest else f"a plan of {floor.target:g}"
            return (
                f"{_times(self.asked)} was asked for; with {least} {_times(floor.measured)} was measured, which is the floor. "
                "Locked groups, and operations that no width changes, remain."
            )
        return (
            f"{_times(self.asked)} was asked for and {_times(measured)} measured, more than {100 * TOLERANCE:g}% slower; the "
            f"fastest of {len(self.tries)} tries was {_times(floor.measured)}. Ask for less, or measure on an idle machine."
        )

    def to_json(self) -> dict[str, Any]:
        return {"asked": self.asked, "chosen": self.chosen, "tries": [asdict(one) for one in self.tries]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "LatencySearch":
        return cls(values["asked"], tuple(LatencyTry(**one) for one in values["tries"]), values["chosen"])


@dataclass(frozen=True)
class LatencyOutcome:
    """How a latency budget was met: the tries, and the table that they were planned with."""

    search: LatencySearch
    table: LatencyTable

    @property
    def missed(self) -> str:
        """Why even the best try is too slow; empty if it is fast enough."""
        return self.search.missed(self.search.best.measured)

    def judged(self, measured: float, low: float, high: float) -> float:
        """The fraction that the budget is judged by: of the shipped file and the chosen try, which has the same widths, the
        median with the narrower interval."""
        best = self.search.best
        return measured if high / low <= best.high / best.low else best.measured

    def to_json(self) -> dict[str, Any]:
        """Plain values; latencies are fractions of the baseline's."""
        return {
            **self.search.to_json(),
            "planned": self.search.best.planned,
            "batch": self.table.about["batch"],
            "provider": self.table.about["provider"],
            "table": {
                "sha256": self.table.sha256,
                "layers": len(self.table.layers),
                "measured_points": self.table.measured_points,
                "offset_ms": self.table.offset_ms,
            },
        }


def _times(latency: float) -> str:
    return f"{1 / latency:.3g} times as fast (latency {latency:.3f})"


def search_latency(attempt: Callable[[float], LatencyTry], asked: float) -> LatencySearch:
    """Find the network whose measured latency is the closest below the one asked for.

    The first target is the latency asked for. Measurements show the error of the table: the next target is interpolated between
    the nearest tries on either side (the baseline, at 1, counts as one). The search ends with a try at most ``ROOM`` below or
    ``CLOSE`` above, with one that is too slow at its narrowest, or after ``MOST_TRIES``. Of the tries that are fast enough the
    slowest is chosen; if none is, the fastest.
    """
    tries: list[LatencyTry] = []
    target: float | None = asked
    enough = asked * (1 + CLOSE)
    while target is not None and len(tries) < MOST_TRIES:
        found = attempt(target)
        tries.append(found)
        if asked * (1 - ROOM) <= found.measured <= enough or (found.narrowest and found.measured > enough):
            break
        target = _next_target(tries, asked)
    within = [index for index, one in enumerate(tries) if one.measured <= enough]
    if within:
        chosen = max(within, key=lambda index: tries[index].measured)
    else:
        chosen = min(range(len(tries)), key=lambda index: tries[index].measured)
    return LatencySearch(asked, tuple(tries), chosen)


def _next_target(tries: list[LatencyTry], asked: float) -> float | None:
    """The target at which the line through the nearest tries has the wanted latency; None if it was tried already."""
    aim = asked * (1 - ROOM / 2)
    points = [(1.0, 1.0), *((one.measured, one.planned) for one in tries)]
    faster = max((point for point in points if point[0] <= aim), default=None)
    floor = 0.0 if faster is None else faster[1]
    above = [point for point in points if point[0] > aim and point[1] > floor]
    slower = min(above, key=lambda point: point[1])  # by plan: the answer lies between it and the fast one
    if faster is None:  # nothing was fast enough: extrapolate from the baseline
        measured, planned = slower
        lowest = min(one.target for one in tries)
        target = max(lowest * BOLD, 1 - (1 - planned) * (1 - aim) / (1 - measured) if measured < 1 else 0.0)
    else:
        share = (slower[0] - aim) / (slower[0] - faster[0])
        target = slower[1] + share * (faster[1] - slower[1])
    rounded = min(1 - STEP, max(NARROWEST, STEP * round(target / STEP)))
    away = -STEP if tries[-1].measured > asked else STEP
    tried = {round(one.target / STEP) for one in tries}
    for candidate in (rounded, rounded + away):
        if round(candidate / STEP) not in tried and NARROWEST <= candidate < 1:
            return round(candidate, 6)
    return None
