"""Widths under a budget that lose the least: greedy by loss per unit of cost, then exchanges. Pure arithmetic.

Costs are bilinear in the widths of neighbouring groups, so what a step saves is reckoned anew after every step. The greedy part
looks at several narrower widths of a group, not only the next, so that flat stretches of a loss curve do not stop it. Exchanges
then widen one group and narrow others for as long as the sum of losses falls within the budget.
"""

from collections.abc import Callable, Mapping, Sequence

Widths = dict[str, int]
EXCHANGES = 200


def allocate(
    choices: Mapping[str, Sequence[int]],
    loss: Mapping[str, Callable[[int], float]],
    used: Callable[[Mapping[str, int]], float],
    saved: Callable[[Mapping[str, int], str, int], float],
    neighbours: Mapping[str, Sequence[str]],
    limit: float,
) -> Widths:
    """Choose a width for every group so that the cost is within the limit and the sum of losses small.

    Args:
        choices: the widths that each group may have, descending; the first is the whole.
        loss: each group's loss at a width.
        used: the cost of a set of widths.
        saved: what changing one group to a width saves, given the others.
        neighbours: the groups whose savings change with a group's width, itself included.
        limit: the most that may be used.

    Returns:
        The widths; every group's narrowest where even those are above the limit.
    """
    losses = {name: {width: loss[name](width) for width in widths} for name, widths in choices.items()}
    kept = {name: widths[0] for name, widths in choices.items()}
    spent = used(kept)
    best: dict[str, tuple[float, int] | None] = {}
    while spent > limit:
        for name in choices:
            if name not in best:
                best[name] = _cheapest(name, choices[name], losses[name], kept, saved)
        open_steps = [(step[0], name, step[1]) for name, step in best.items() if step is not None]
        if not open_steps:
            return kept
        _, name, width = min(open_steps)
        kept[name] = width
        spent = used(kept)
        for other in neighbours[name]:
            best.pop(other, None)
    return _exchange(choices, losses, kept, used, saved, limit)


def _cheapest(
    name: str,
    widths: Sequence[int],
    losses: Mapping[int, float],
    kept: Mapping[str, int],
    saved: Callable[[Mapping[str, int], str, int], float],
) -> tuple[float, int] | None:
    """The narrower width that loses least per unit saved: (loss per saving, width)."""
    found = None
    place = list(widths).index(kept[name])
    ahead = [place + step for step in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)]
    for width in (widths[index] for index in ahead if index < len(widths)):
        saving = saved(kept, name, width)
        if saving > 0:
            price = (losses[width] - losses[kept[name]]) / saving
            if found is None or price < found[0]:
                found = (price, width)
    return found


def _exchange(
    choices: Mapping[str, Sequence[int]],
    losses: Mapping[str, Mapping[int, float]],
    kept: Widths,
    used: Callable[[Mapping[str, int]], float],
    saved: Callable[[Mapping[str, int], str, int], float],
    limit: float,
) -> Widths:
    """Widen what the budget has room for, and swap widths between groups, while that lowers the sum of losses."""
    for _ in range(EXCHANGES):
        room = limit - used(kept)
        moves = [
            (losses[name][width] - losses[name][kept[name]], saved(kept, name, width), name, width)
            for name, widths in choices.items()
            for width in _nearby(widths, kept[name])
        ]
        wider = sorted(move for move in moves if move[3] > kept[move[2]])
        narrower = sorted((move for move in moves if move[3] < kept[move[2]]), key=lambda move: move[0])
        found: tuple[float, Widths] | None = None
        for gain, saving, name, width in wider:
            if found is not None and gain >= found[0]:
                break
            if -saving <= room:
                found = (gain, {**kept, name: width})
                continue
            for cost, other_saving, other, other_width in narrower:
                if gain + cost >= min(-1e-12, found[0] if found else 0.0):
                    break
                if other == name or -saving - other_saving > room * 1.5 + 0.02 * limit:
                    continue
                candidate = {**kept, name: width, other: other_width}
                if used(candidate) <= limit:
                    found = (gain + cost, candidate)
                    break
        if found is None or (found[0] >= 0 and used(found[1]) <= used(kept)):
            return kept
        kept = found[1]
    return kept


def _nearby(widths: Sequence[int], width: int) -> list[int]:
    """Up to three steps wider and three narrower."""
    place = list(widths).index(width)
    return [*widths[max(0, place - 3) : place], *widths[place + 1 : place + 4]]
