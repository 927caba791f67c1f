"""Progress of long work, and the observer that a run reports to."""

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""


def silent(done: int, total: int) -> None:
    """A progress that is not shown."""


def in_parts(progress: Progress, *shares: tuple[str, int]) -> Callable[[str], Progress]:
    """One progress out of those of several parts, by their shares of the time."""
    total, before, starts = sum(share for _, share in shares), 0, dict[str, tuple[int, int]]()
    for name, share in shares:
        starts[name] = before, share
        before += share

    def part(name: str) -> Progress:
        start, share = starts[name]

        def told(done: int, of: int) -> None:
            progress(round(1000 * (start + share * done / max(1, of)) / total), 1000)

        return told

    return part


class Observer:
    """What a run tells while it works; this one stays silent. The command line has one that prints."""

    def say(self, text: str) -> None:
        """Something the user should know."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage begins and ends; inside, progress is told as (done, total)."""
        yield silent

    def skipped(self, name: str) -> None:
        """A stage's result was there already."""
