"""Widths under a budget with the least loss: greedy by loss per cost saved, then exchanges. Pure arithmetic.

Costs are bilinear in the widths of neighbouring groups, so the savings of a step are computed again after every step. The
greedy part looks at several narrower widths of a group, not only the next, so that plateaus of a loss curve do not stop it.
Exchanges then widen one group and narrow another while that lowers the sum of losses within the budget. Removing a whole branch
is one step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

Widths = dict[str, int]
Saved = Callable[[Mapping[str, int], Mapping[str, int]], float]
EXCHANGES = 200
_AHEAD = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
NEARBY = 3


def allocate(
    choices: Mapping[str, Sequence[int]],
    loss: Mapping[str, Callable[[int], float]],
    used: Callable[[Mapping[str, int]], float],
    saved: Saved,
    neighbours: Mapping[str, Sequence[str]],
    limit: float,
    branches: Mapping[str, Sequence[str]] | None = None,
    start: Mapping[str, int] | None = None,
    nearby: int = NEARBY,
) -> Widths:
    """Choose a width for every group so that the cost is within the limit and the sum of losses is small.

    Args:
        choices: the widths that each group may have, descending; the first is the whole group. A group with the choice 0 ends a
            branch.
        loss: each group's loss at a width; at 0 the loss of the whole branch.
        used: the cost of a set of widths.
        saved: the cost saved by changing the widths of some groups, given all widths.
        neighbours: the groups whose savings change with a group's width, including itself.
        limit: the largest cost allowed.
        branches: from a group that ends a branch to the other groups of the branch, which are removed with it at no extra loss.
        start: widths within the limit, to improve by exchanges only; if None, greedy steps from the whole network come first.
        nearby: the number of widths on either side that an exchange considers.

    Returns:
        The widths; the narrowest if even those are above the limit.
    """
    problem = _Problem(choices, loss, saved, neighbours, branches or {}, nearby)
    whole = {name: widths[0] for name, widths in choices.items()}
    if start is not None:
        return _exchange(problem, dict(start), used, limit)

    def reach(banned: frozenset[str]) -> tuple[bool, float, Widths]:
        problem.banned = banned
        kept = _exchange(problem, _descend(problem, dict(whole), used, limit), used, limit)
        cost = used(kept)
        missed = cost > limit  # then the cheapest is wanted, whatever it loses
        return missed, cost if missed else problem.gain(whole, kept), kept

    best = reach(frozenset())
    gone = [name for name in problem.branches if best[2][name] == 0]
    if gone:  # exchanges rarely undo the removal of a branch, so try without each, and without any
        others = [reach(frozenset([name])) for name in gone] + [reach(frozenset(problem.branches))]
        best = min([best, *others], key=lambda found: found[:2])
    return best[2]


def _descend(problem: "_Problem", kept: Widths, used: Callable[[Mapping[str, int]], float], limit: float) -> Widths:
    """Take the cheapest step until the budget is met or no step is left."""
    best: dict[str, tuple[float, Widths] | None] = {}
    while used(kept) > limit:
        for name in problem.choices:
            if name not in best:
                best[name] = problem.cheapest(kept, name)
        open_steps = [(step[0], name) for name, step in best.items() if step is not None]
        if not open_steps:
            break
        step = best[min(open_steps)[1]]
        assert step is not None
        kept.update(step[1])
        for other in problem.around(step[1]):
            best.pop(other, None)
    return kept


def _exchange(problem: "_Problem", kept: Widths, used: Callable[[Mapping[str, int]], float], limit: float) -> Widths:
    """Exchange widths while that lowers the sum of losses."""
    for _ in range(EXCHANGES):
        changes = problem.exchange(kept, limit - used(kept), 0.02 * limit)
        if not changes:
            break
        kept.update(changes)
    return kept


class _Problem:
    """The arguments of :func:`allocate`, with every loss computed once."""

    def __init__(
        self,
        choices: Mapping[str, Sequence[int]],
        loss: Mapping[str, Callable[[int], float]],
        saved: Saved,
        neighbours: Mapping[str, Sequence[str]],
        branches: Mapping[str, Sequence[str]],
        nearby: int,
    ) -> None:
        self.nearby = nearby
        self.choices, self.saved, self.neighbours, self.branches = choices, saved, neighbours, branches
        self.banned: frozenset[str] = frozenset()
        self.losses = {name: {width: loss[name](width) for width in widths} for name, widths in choices.items()}
        for others in branches.values():
            for other in others:
                self.losses[other] = {**self.losses[other], 0: 0.0}

    def around(self, changes: Mapping[str, int]) -> set[str]:
        """The groups whose steps must be computed again after a change."""
        touched = {other for name in changes for other in self.neighbours[name]}
        return touched | {end for end, others in self.branches.items() if touched & {end, *others}}

    def change(self, kept: Mapping[str, int], name: str, width: int) -> Widths | None:
        """The widths that change together with a group's; None if the change is not possible."""
        changes = {name: width}
        others = self.branches.get(name, ())
        if width == 0 and name in self.banned:
            return None
        if width == 0:
            changes.update(dict.fromkeys(others, 0))
        elif kept[name] == 0:
            if name not in self.branches:  # inside a removed branch
                return None
            share = width / self.choices[name][0]
            for other in others:
                widths = self.choices[other]
                changes[other] = min(widths, key=lambda size, whole=widths[0]: abs(size / whole - share))  # type: ignore[misc]
        return changes

    def gain(self, kept: Mapping[str, int], changes: Mapping[str, int]) -> float:
        """The increase of the sum of losses."""
        return sum(self.losses[name][width] - self.losses[name][kept[name]] for name, width in changes.items())

    def cheapest(self, kept: Mapping[str, int], name: str) -> tuple[float, Widths] | None:
        """The narrower width with the least loss per cost saved: (loss per saving, changes)."""
        widths = self.choices[name]
        if kept[name] not in widths:
            return None
        found = None
        place = list(widths).index(kept[name])
        ahead = {widths[place + step] for step in _AHEAD if place + step < len(widths)}
        if widths[-1] == 0 and kept[name]:
            ahead.add(0)
        for width in sorted(ahead, reverse=True):
            changes = self.change(kept, name, width)
            saving = self.saved(kept, changes) if changes is not None else 0.0
            if changes is not None and saving > 0:
                price = self.gain(kept, changes) / saving
                if found is None or price < found[0]:
                    found = (price, changes)
        return found

    def exchange(self, kept: Mapping[str, int], room: float, slack: float) -> Widths:
        """The best change within the room: one group widened, alone or with another narrowed to pay for it."""
        moves = sorted(self._moves(kept), key=lambda move: move[0])
        wider = [move for move in moves if move[1] < 0]
        narrower = [move for move in moves if move[1] >= 0]
        found: tuple[float, Widths] = (-1e-12, {})
        for gain, saving, changes in wider:
            if gain >= found[0]:
                break
            if -saving <= room:
                found = (gain, changes)
                continue
            near = {other for name in changes for other in self.neighbours[name]}
            for cost, other_saving, other_changes in narrower:
                if gain + cost >= found[0]:
                    break
                if changes.keys() & other_changes.keys():
                    continue
                together = saving + other_saving
                if -together > room * 1.5 + slack:
                    continue
                both = {**changes, **other_changes}
                if near & other_changes.keys():
                    together = self.saved(kept, both)
                if -together <= room:
                    found = (gain + cost, both)
                    break
        return found[1]

    def _moves(self, kept: Mapping[str, int]) -> Iterator[tuple[float, float, Widths]]:
        """(increase of the loss, saving, changes) for the nearby widths of every group."""
        for name, widths in self.choices.items():
            if kept[name] not in widths:
                continue
            place = list(widths).index(kept[name])
            nearby = {*widths[max(0, place - self.nearby) : place], *widths[place + 1 : place + 1 + self.nearby]}
            if widths[-1] == 0 and kept[name]:
                nearby.add(0)
            for width in sorted(nearby, reverse=True):
                changes = self.change(kept, name, width)
                if changes is not None:
                    yield self.gain(kept, changes), self.saved(kept, changes), changes
