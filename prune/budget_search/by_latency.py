"""A latency budget met by trying: plan with the table, time the cut network, plan again. Pure: a try is handed in."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .layer_times import LatencyTable

MOST_TRIES, STEP = 5, 0.005
"""How often a network is cut and timed, and what the targets are multiples of, so that noise seldom makes another plan."""
ROOM, TOLERANCE = 0.05, 0.05
"""How far below the asked latency a try may lie, as a share of it, to end the search; and how far above it the shipped file
may be measured, hours and processes apart, to pass still."""
NARROWEST, BOLD = 0.05, 0.6
"""The least target, and how far below the lowest so far the next may lie while nothing was fast enough."""


@dataclass(frozen=True)
class LatencyTry:
    """One cut, all as fractions of the baseline's latency: ``target``, asked of the planner; ``planned``, by the table;
    ``measured``, median, with its interval ``low`` to ``high``. ``narrowest``: nothing narrower can be planned."""

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
        """Why the shipped file, measured once more, is too slow; or nothing."""
        if measured <= self.asked * (1 + TOLERANCE):
            return ""
        floor = min(self.tries, key=lambda one: one.measured)
        if self.best.narrowest or floor.target <= NARROWEST:
            least = "every group at its narrowest" if floor.narrowest else f"a plan of {floor.target:g}"
            return (
                f"latency {self.asked:g} was asked for; with {least} {floor.measured:.3f} was measured, which is the floor. "
                "What is locked, and work that no width changes, stays."
            )
        return (
            f"latency {self.asked:g} was asked for and {measured:.3f} measured, more than {100 * TOLERANCE:g}% above it; the "
            f"fastest of {len(self.tries)} tries had {floor.measured:.3f}. Ask for less, or measure on a machine at rest."
        )

    def to_json(self) -> dict[str, Any]:
        return {"asked": self.asked, "chosen": self.chosen, "tries": [asdict(one) for one in self.tries]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "LatencySearch":
        return cls(values["asked"], tuple(LatencyTry(**one) for one in values["tries"]), values["chosen"])


@dataclass(frozen=True)
class LatencyOutcome:
    """How a latency budget was met: the tries, and the table that they were planned by."""

    search: LatencySearch
    table: LatencyTable

    @property
    def missed(self) -> str:
        """Why even the best try is too slow, or nothing."""
        return self.search.missed(self.search.best.measured)

    def judged(self, measured: float, low: float, high: float) -> float:
        """The fraction that the budget is judged by: the median of the shipped file, with its interval, or that of the chosen
        try, which has the same widths, where its interval is the narrower one."""
        best = self.search.best
        return measured if high / low <= best.high / best.low else best.measured

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is a latency is a fraction of the baseline's."""
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


def search_latency(attempt: Callable[[float], LatencyTry], asked: float) -> LatencySearch:
    """Find the network whose measured latency lies closest below what was asked for.

    The first target is what was asked for. What the table got wrong shows in the measurement, and the next target is read off
    the line between the nearest tries on either side (the baseline, at 1, is one). It ends with a try within ``ROOM`` below,
    with one that is too slow at its narrowest, or after ``MOST_TRIES``. Of those that are fast enough the slowest is chosen; if
    none is, the fastest.
    """
    tries: list[LatencyTry] = []
    target: float | None = asked
    while target is not None and len(tries) < MOST_TRIES:
        found = attempt(target)
        tries.append(found)
        if asked * (1 - ROOM) <= found.measured <= asked or (found.narrowest and found.measured > asked):
            break
        target = _next_target(tries, asked)
    within = [index for index, one in enumerate(tries) if one.measured <= asked]
    if within:
        chosen = max(within, key=lambda index: tries[index].measured)
    else:
        chosen = min(range(len(tries)), key=lambda index: tries[index].measured)
    return LatencySearch(asked, tuple(tries), chosen)


def _next_target(tries: list[LatencyTry], asked: float) -> float | None:
    """Where the line through the nearest tries has the latency aimed at; None where that was tried already."""
    aim = asked * (1 - ROOM / 2)
    points = [(1.0, 1.0), *((one.measured, one.planned) for one in tries)]
    faster = max((point for point in points if point[0] <= aim), default=None)
    floor = 0.0 if faster is None else faster[1]
    above = [point for point in points if point[0] > aim and point[1] > floor]
    slower = min(above, key=lambda point: point[1])  # nearest in the plan: between it and the fast one the answer lies
    if faster is None:  # nothing was fast enough: on along the line from the baseline
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
