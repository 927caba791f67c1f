"""The charts of throughput and speedup as inline SVG: pure functions of a report's values, coloured by the page's style.

Each chart has a title and a description, and the page shows a table with the same figures.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..wording import count
from .axes import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    batch_places,
    batches,
    log_ticks,
    opening,
    present,
    round_count,
    ticks,
)

"""Width and margins of a chart in units of its view box."""

"""Height of a class's row, and the width of its name."""


def throughput_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Images per second of both files by batch size, on a logarithmic scale, with the intervals of the medians.

    Args:
        rows: ``batch``, and for ``baseline`` and ``pruned`` their ``median_ms`` with ``low_ms`` and ``high_ms`` or None.
    """
    rates = {
        name: [tuple(1e3 * row["batch"] / row[name][key] for key in present(row[name])) for row in rows]
        for name in ("baseline", "pruned")
    }
    values = [value for series in rates.values() for rate in series for value in rate]
    low, high = math.log10(min(values)) - 0.06, math.log10(max(values)) + 0.1
    last = rows[-1]
    description = (
        f"At batch {last['batch']} {count(rates['baseline'][-1][0])} images per second before, "
        f"{count(rates['pruned'][-1][0])} after."
    )
    height = 290

    def y(value: float) -> float:
        return float(TOP + (high - math.log10(value)) / (high - low) * (height - TOP - BOTTOM))

    parts = opening("throughput", WIDTH, height, "Images per second by batch size", description)
    for tick in log_ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4.5:.1f}" text-anchor="end">{round_count(tick)}</text>')
    places = batch_places(len(rows))
    for name, kind in (("baseline", "was"), ("pruned", "now")):
        line = "L".join(f"{place:.1f} {y(rate[0]):.1f}" for place, rate in zip(places, rates[name], strict=True))
        parts.append(f'<g class="{kind}"><path class="line" d="M{line}"/>')
        for place, rate, row in zip(places, rates[name], rows, strict=True):
            words = f"{name}, batch {row['batch']}: {count(rate[0])} images per second"
            parts.append(f"<g><title>{words}</title>")
            if len(rate) == 3:
                parts.append(f'<path class="whisker" d="M{place:.1f} {y(rate[1]):.1f}V{y(rate[2]):.1f}"/>')
            parts.append(f'<circle class="mark" cx="{place:.1f}" cy="{y(rate[0]):.1f}" r="4.5"/></g>')
        parts.append("</g>")
    parts += batches(rows, places, height)
    return "".join([*parts, "</svg>"])


def speedup_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Baseline time over pruned time by batch size, with its interval, over the band of the noise floor.

    Args:
        rows: ``batch``, and ``ratio`` and ``floor`` with ``ratio``, ``low`` and ``high`` each.
    """
    values = [row[name][key] for row in rows for name in ("ratio", "floor") for key in ("low", "high")]
    low, high = min(1.0, *values), max(1.0, *values)
    margin = 0.08 * max(high - low, 0.1)
    low, high, height = low - margin, high + margin, 290

    def y(value: float) -> float:
        return float(TOP + (high - value) / (high - low) * (height - TOP - BOTTOM))

    last = rows[-1]["ratio"]
    description = (
        f"At batch {rows[-1]['batch']} {last['ratio']:.2f} times as fast ({last['low']:.2f} to {last['high']:.2f}). "
        "Grey: the baseline against itself."
    )
    parts = opening("speedup", WIDTH, height, "Speedup by batch size", description)
    for tick in ticks(low, high):
        kind = "axis" if tick == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4.5:.1f}" text-anchor="end">{tick:g}x</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {y(1):.1f}H{WIDTH - RIGHT}"/>')
    places = batch_places(len(rows))
    for place, row in zip(places, rows, strict=True):
        ratio, floor = row["ratio"], row["floor"]
        tall = max(1.0, y(floor["low"]) - y(floor["high"]))
        parts.append(
            f'<rect class="floor" x="{place - 16:.1f}" y="{y(floor["high"]):.1f}" width="32" height="{tall:.1f}"/>'
        )
        words = f"batch {row['batch']}: {ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        parts.append(f'<g class="{"worse" if ratio["high"] < 1 else "now"}"><title>{words}</title>')
        parts.append(f'<path class="whisker" d="M{place:.1f} {y(ratio["low"]):.1f}V{y(ratio["high"]):.1f}"/>')
        parts.append(f'<circle class="mark" cx="{place:.1f}" cy="{y(ratio["ratio"]):.1f}" r="4.5"/>')
        parts.append(f'<text x="{place + 11:.1f}" y="{y(ratio["ratio"]) + 4.5:.1f}">{ratio["ratio"]:.2f}</text></g>')
    parts += batches(rows, places, height)
    return "".join([*parts, "</svg>"])
