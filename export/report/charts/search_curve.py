"""The curve of a search as inline SVG: pure functions of a report's values, coloured by the page's style."""

import math
from collections.abc import Mapping
from typing import Any

from .axes import ticks

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 46, 26, 18, 50
"""The size of the curve and its margins, in units of its view box."""
FARTHEST = 6
"""Drops larger than this multiple of the limit are drawn at the edge, with their value."""


def search_curve(search: Mapping[str, Any]) -> str:
    """All tries of a search as an ``<svg>``: the share of the MACs that is left, and the drop in points with its interval.

    Args:
        search: a report's ``search``.
    """
    limit, trials, chosen = search["max_drop"], search["trials"], search["chosen"]
    low, high = _span(trials, limit)
    widest: int = 25 * math.ceil(4 * max(trial["left"] for trial in trials))

    def x(left: float) -> float:
        return LEFT + 100 * left / widest * (WIDTH - LEFT - RIGHT)

    def y(points: float) -> float:
        return TOP + (high - min(high, max(low, points))) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="search-title search-desc">',
        '<title id="search-title">Drop on validation images against the share of the MACs left</title>',
        f'<desc id="search-desc">{_described(search)}</desc>',
    ]
    for tick in ticks(low, high):
        parts.append(f'<path class="{"axis" if tick == 0 else "grid"}" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4.5:.1f}" text-anchor="end">{tick:g}</text>')
    for percent in range(0, widest + 1, 25 if widest > 50 else widest // 5):
        place = x(percent / 100)
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{percent}%</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 10}" text-anchor="middle">MACs left</text>')
    parts.append(
        f'<text transform="translate(13 {(HEIGHT - BOTTOM + TOP) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "drop, points</text>"
    )
    parts.append(f'<path class="limit" d="M{LEFT} {y(limit):.1f}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text class="limit" x="{LEFT + 4}" y="{y(limit) - 6:.1f}">limit {limit:g}</text>')
    for index in sorted(range(len(trials)), key=lambda index: (index == chosen, trials[index]["holds"])):
        trial = trials[index]
        parts.append(_mark(trial, x(trial["left"]), y, high, index == chosen))
    return "".join([*parts, "</svg>"])


_VERDICTS = {"shipped": "exported", "held": "within the limit", "failed": "beyond the limit"}


def _mark(trial: Mapping[str, Any], x: float, y: Any, high: float, shipped: bool) -> str:
    """One try: its whisker, and a diamond if it is exported, a dot if it is within the limit, a ring if not, an arrow at the
    edge.
    """
    kind = "shipped" if shipped else "held" if trial["holds"] else "failed"
    place = y(trial["points"])
    whisker = f'<path class="whisker" d="M{x:.1f} {y(trial["low"]):.1f}V{y(trial["high"]):.1f}"/>'
    label = ""
    if trial["points"] > high:
        shape = f'<path class="mark" d="M{x:.1f} {place - 5:.1f}l5 9h-10z"/>'
        side, anchor = (8, "start") if x < WIDTH / 2 else (-8, "end")
        label = f'<text x="{x + side:.1f}" y="{place + 5:.1f}" text-anchor="{anchor}">{trial["points"]:.0f}</text>'
    elif shipped:
        shape = f'<path class="mark" d="M{x:.1f} {place - 8:.1f}l8 8l-8 8l-8 -8z"/>'
    else:
        shape = f'<circle class="mark" cx="{x:.1f}" cy="{place:.1f}" r="4.5"/>'
    left = f"{100 * trial['left']:.1f}% left: {trial['points']:.2f} points ({trial['low']:.2f} to {trial['high']:.2f})"
    words = f"{left}, {_VERDICTS[kind]}"
    return f'<g class="{kind}"><title>{words}</title>{whisker}{shape}{label}</g>'


def _described(search: Mapping[str, Any]) -> str:
    """The curve in words, for screen readers."""
    trials, chosen = search["trials"], search["chosen"]
    held = sum(trial["holds"] for trial in trials)
    text = f"{len(trials)} tries, {held} within the limit of {in_points(search['max_drop'])}. "
    if chosen is None:
        return text + "Nothing was cut."
    won = trials[chosen]
    return (
        f"{text}Exported: {100 * won['left']:.1f}% of the MACs with a drop of {won['points']:.2f} points "
        f"({won['low']:.2f} to {won['high']:.2f})."
    )


def in_points(value: float) -> str:
    """A number of percentage points in words."""
    return f"{value:g} point{'' if value == 1 else 's'}"


def _span(trials: list[Mapping[str, Any]], limit: float) -> tuple[float, float]:
    """The lowest and highest drop of the axis."""
    high = max(limit, *(trial["high"] for trial in trials))
    low = min(0.0, *(trial["low"] for trial in trials))
    return max(low, -FARTHEST * limit), 1.08 * min(high, FARTHEST * limit)
