"""Progress of long work, and the observer that a run reports to."""

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` during long work."""


def silent(done: int, total: int) -> None:
    """A progress callback that does nothing."""


def in_parts(progress: Progress, *shares: tuple[str, int]) -> Callable[[str], Progress]:
    """Combine the progress of several parts into one.

    Args:
        progress: receives the whole's progress, in thousandths.
        shares: (name, share of the time) of each part, in order.

    Returns:
        A function from a part's name to its progress callback.
    """
    total, before, starts = sum(share for _, share in shares), 0, dict[str, tuple[int, int]]()
    for name, share in shares:
        starts[name] = before, share
        before += share

    def part(name: str) -> Progress:
        start, share = starts[name]

        def report(done: int, of: int) -> None:
            progress(round(1000 * (start + share * done / max(1, of)) / total), 1000)

        return report

    return part


class Observer:
    """Receives what a run reports while it works. This one ignores it; the command line's prints it."""

    def say(self, text: str) -> None:
        """Something the user should know."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """The context of one stage; yields its progress callback."""
        yield silent

    def skipped(self, name: str) -> None:
        """A stage was skipped because its result already exists."""
