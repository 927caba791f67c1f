"""The chart of accuracies by class."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..wording import share
from .axes import BOTTOM, RIGHT, TOP, WIDTH, axis_name, opening, short, ticks

ROW, NAMES = 24, 120
CLASS_ROWS = 24
"""The most classes that are drawn; the table lists all of them."""


def class_chart(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Accuracy of each class before (ring) and after (dot), the latter with its Wilson interval; the largest changes come
    first.

    Args:
        rows: ``name``, ``before`` and ``after`` in [0, 1], ``interval`` of the latter (low, high) or None.
        measure: the name of the plotted share, such as "top-1 accuracy".
    """
    drawn = rows[:CLASS_ROWS]
    lows = [min(row["before"], row["after"], *(row["interval"] or ())) for row in drawn]
    least = math.floor(10 * min(lows)) / 10
    least = min(least, 0.9)
    height = TOP + ROW * len(drawn) + BOTTOM

    def x(value: float) -> float:
        return float(NAMES + (value - least) / (1 - least) * (WIDTH - NAMES - RIGHT))

    worst = max(drawn, key=lambda row: row["before"] - row["after"])
    description = (
        f"{len(drawn)} of {len(rows)} classes, largest changes first. Largest loss: {short(worst['name'], 40)}, "
        f"{share(worst['before'])} to {share(worst['after'])}."
    )
    parts = opening("classes-chart", WIDTH, height, f"{measure} per class before and after", description)
    for tick in ticks(100 * least, 100):
        place = x(tick / 100)
        parts.append(f'<path class="grid" d="M{place:.1f} {TOP - 6}V{height - BOTTOM + 4}"/>')
        parts.append(f'<text x="{place:.1f}" y="{height - BOTTOM + 20}" text-anchor="middle">{tick:g}%</text>')
    for index, row in enumerate(drawn):
        y = TOP + ROW * index + ROW / 2
        kind = "worse" if row["after"] < row["before"] else "better" if row["after"] > row["before"] else "same"
        words = f"{row['name']}: {share(row['before'])} to {share(row['after'])}"
        parts.append(f'<g class="{kind}"><title>{escape(words)}</title>')
        parts.append(
            f'<text x="{NAMES - 9}" y="{y + 4.5:.1f}" text-anchor="end">{escape(short(row["name"], 12))}</text>'
        )
        if row["interval"]:
            low, high = row["interval"]
            parts.append(f'<path class="whisker" d="M{x(low):.1f} {y:.1f}H{x(high):.1f}"/>')
        parts.append(f'<path class="link" d="M{x(row["before"]):.1f} {y:.1f}H{x(row["after"]):.1f}"/>')
        parts.append(f'<circle class="was" cx="{x(row["before"]):.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(f'<circle class="now" cx="{x(row["after"]):.1f}" cy="{y:.1f}" r="4"/></g>')
    parts.append(axis_name((NAMES + WIDTH - RIGHT) / 2, height, measure))
    return "".join([*parts, "</svg>"])
