"""The registry of rankers: a ranker is a function of a :class:`~.scores.RankingTask`, registered under a name."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..common.errors import UsageError
from .scores import KernelScores, LayerScores, RankingTask

_MODULES = (
    "baselines",
    "consensus",
    "agic.ranker",
    "attribution.rankers",
    "faithfulness.ablation",
    "gap.rankers",
    "picnn.ranker",
    "shapley.ranker",
)
"""The modules that register rankers. A new module with a ranker is listed here."""


@dataclass(frozen=True)
class Ranker:
    """A registered ranker. ``needs`` is ``weights``, ``images``, or ``labels`` (images with labels)."""

    name: str
    summary: str
    needs: str
    unit: str
    source: str
    score: Callable[[RankingTask], KernelScores]


_RANKERS: dict[str, Ranker] = {}


def register(
    name: str, *, summary: str, needs: str, unit: str, source: str
) -> Callable[[Callable[[RankingTask], LayerScores]], Callable[[RankingTask], KernelScores]]:
    """Register a function as the ranker ``name``; its scores are returned with that name and ``unit``.

    Args:
        name: the value of ``--rank-by``.
        summary: one line for ``secateur rankers``.
        needs: ``weights``, ``images``, or ``labels`` (images with labels).
        unit: the unit of a score.
        source: the paper and equation.

    Raises:
        ValueError: the name is already registered.
    """

    def wrap(function: Callable[[RankingTask], LayerScores]) -> Callable[[RankingTask], KernelScores]:
        if name in _RANKERS:
            raise ValueError(f"a ranker named {name!r} is registered already")

        @functools.wraps(function)
        def score(task: RankingTask) -> KernelScores:
            return function(task).named(name, unit)

        _RANKERS[name] = Ranker(name, summary, needs, unit, source, score)
        return score

    return wrap


def load_rankers() -> None:
    """Import the modules that register rankers. They import dependencies other than torch only when they run."""
    for module in _MODULES:
        importlib.import_module(f".{module}", __package__)


def rankers() -> tuple[Ranker, ...]:
    """All registered rankers, by name."""
    load_rankers()
    return tuple(_RANKERS[name] for name in sorted(_RANKERS))


def get_ranker(name: str) -> Ranker:
    """The ranker of this name.

    Raises:
        UsageError: the ranker does not exist; the message lists the valid names.
    """
    load_rankers()
    if name not in _RANKERS:
        raise UsageError(f"unknown ranker {name!r}. There are: {', '.join(sorted(_RANKERS))}.")
    return _RANKERS[name]


@contextlib.contextmanager
def temporary() -> Iterator[None]:
    """Rankers registered inside the ``with`` block are removed at its end."""
    load_rankers()
    before = dict(_RANKERS)
    try:
        yield
    finally:
        _RANKERS.clear()
        _RANKERS.update(before)
