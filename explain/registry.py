"""The registry of rankers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..common.errors import UsageError
from .scores import KernelScores, RankingTask


@dataclass(frozen=True)
class Ranker:
    """A registered way to score kernels. ``needs``: weights, images, or labels as well."""

    name: str
    summary: str
    needs: str
    unit: str
    source: str
    score: Callable[[RankingTask], KernelScores]


_RANKERS: dict[str, Ranker] = {}


def register(name: str, *, summary: str, needs: str, unit: str, source: str) -> Callable[..., Any]:
    """Register a function as the ranker ``name``.

    Raises:
        ValueError: the name is taken.
    """

    def wrap(function: Callable[[RankingTask], KernelScores]) -> Callable[[RankingTask], KernelScores]:
        if name in _RANKERS:
            raise ValueError(f"a ranker named {name!r} is registered already")
        _RANKERS[name] = Ranker(name, summary, needs, unit, source, function)
        return function

    return wrap


def rankers() -> tuple[Ranker, ...]:
    """All registered rankers, by name."""
    return tuple(_RANKERS[name] for name in sorted(_RANKERS))


def get_ranker(name: str) -> Ranker:
    """The ranker of that name.

    Raises:
        UsageError: no such ranker; the valid names are listed.
    """
    if name not in _RANKERS:
        raise UsageError(f"unknown ranker {name!r}. There are: {', '.join(sorted(_RANKERS))}.")
    return _RANKERS[name]
