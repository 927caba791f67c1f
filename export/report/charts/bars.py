"""The charts of the report page as inline SVG: pure functions of a report's values; the page's style colours their classes.

Every chart has a title and a description, and a table with the same figures stands beside it.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..wording import count, share
from .search_curve import ticks

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 440, 54, 20, 18, 46
"""Width and margins of a chart in units of its view box."""
CLASS_ROWS = 24
"""Classes that are drawn; the table has all of them."""
ROW, NAMES = 24, 120
"""Height of a class's row, and the room for its name."""


def class_chart(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """Accuracy of each class before (ring) and after (dot) with the latter's Wilson interval; what moved most is on top.

    Args:
        rows: ``name``, ``before`` and ``after`` in [0, 1], ``interval`` of the latter (low, high) or None.
        measure: what the shares are shares of, in words.
    """
    drawn = rows[:CLASS_ROWS]
    lows = [min(row["before"], row["after"], *(row["interval"] or ())) for row in drawn]
    least = math.floor(10 * min(lows)) / 10
    least = min(least, 0.9)
    height = TOP + ROW * len(drawn) + BOTTOM

    def x(value: float) -> float:
        return float(NAMES + (value - least) / (1 - least) * (WIDTH - NAMES - RIGHT))

    worst = max(drawn, key=lambda row: row["before"] - row["after"])
    told = (
        f"{len(drawn)} of {len(rows)} classes, what moved most first. Largest loss: {_short(worst['name'], 40)}, "
        f"{share(worst['before'])} to {share(worst['after'])}."
    )
    parts = _opening("classes-chart", WIDTH, height, f"{measure} per class before and after", told)
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
            f'<text x="{NAMES - 9}" y="{y + 4.5:.1f}" text-anchor="end">{escape(_short(row["name"], 12))}</text>'
        )
        if row["interval"]:
            low, high = row["interval"]
            parts.append(f'<path class="whisker" d="M{x(low):.1f} {y:.1f}H{x(high):.1f}"/>')
        parts.append(f'<path class="link" d="M{x(row["before"]):.1f} {y:.1f}H{x(row["after"]):.1f}"/>')
        parts.append(f'<circle class="was" cx="{x(row["before"]):.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(f'<circle class="now" cx="{x(row["after"]):.1f}" cy="{y:.1f}" r="4"/></g>')
    parts.append(_axis_name((NAMES + WIDTH - RIGHT) / 2, height, measure))
    return "".join([*parts, "</svg>"])


def width_profile(layers: Sequence[Mapping[str, Any]]) -> str:
    """Every layer as a column: its kernels before (light) and after (full), in the order of the network.

    The view box is one unit a layer and 100 high, to be stretched: it holds no text that stretching would distort.
    """
    widest: int = max(layer["before"] for layer in layers)
    before, after = (sum(layer[name] for layer in layers) for name in ("before", "after"))
    told = (
        f"{len(layers)} layers, the widest has {widest} kernels. All together {before} kernels before, {after} after."
    )
    room = 0.8 if len(layers) < 120 else 1.0
    parts = [
        f'<svg class="profile" viewBox="0 0 {len(layers)} 100" preserveAspectRatio="none" role="img" '
        'aria-labelledby="profile-title profile-desc">',
        '<title id="profile-title">Kernels of every layer before and after</title>',
        f'<desc id="profile-desc">{told}</desc>',
    ]
    for index, layer in enumerate(layers):
        x = index + (1 - room) / 2
        words = f"{layer['name']}: {layer['before']} to {layer['after']}"
        parts.append(f"<g><title>{escape(words)}</title>")
        for kind in ("before", "after"):
            tall = 100 * layer[kind] / widest
            parts.append(f'<rect class="{kind}" x="{x:.2f}" y="{100 - tall:.2f}" width="{room}" height="{tall:.2f}"/>')
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def throughput_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Images a second of both files over the batch sizes, on a logarithmic scale, with the intervals of the medians.

    Args:
        rows: ``batch``, and for ``baseline`` and ``pruned`` their ``median_ms`` with ``low_ms`` and ``high_ms`` or None.
    """
    rates = {
        name: [tuple(1e3 * row["batch"] / row[name][key] for key in _present(row[name])) for row in rows]
        for name in ("baseline", "pruned")
    }
    values = [value for series in rates.values() for rate in series for value in rate]
    low, high = math.log10(min(values)) - 0.06, math.log10(max(values)) + 0.1
    last = rows[-1]
    told = (
        f"At batch {last['batch']} {count(rates['baseline'][-1][0])} images a second before, "
        f"{count(rates['pruned'][-1][0])} after."
    )
    height = 290

    def y(value: float) -> float:
        return float(TOP + (high - math.log10(value)) / (high - low) * (height - TOP - BOTTOM))

    parts = _opening("throughput", WIDTH, height, "Images a second over batch sizes", told)
    for tick in _log_ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4.5:.1f}" text-anchor="end">{_round_count(tick)}</text>')
    places = _places(len(rows))
    for name, kind in (("baseline", "was"), ("pruned", "now")):
        line = "L".join(f"{place:.1f} {y(rate[0]):.1f}" for place, rate in zip(places, rates[name], strict=True))
        parts.append(f'<g class="{kind}"><path class="line" d="M{line}"/>')
        for place, rate, row in zip(places, rates[name], rows, strict=True):
            words = f"{name}, batch {row['batch']}: {count(rate[0])} images a second"
            parts.append(f"<g><title>{words}</title>")
            if len(rate) == 3:
                parts.append(f'<path class="whisker" d="M{place:.1f} {y(rate[1]):.1f}V{y(rate[2]):.1f}"/>')
            parts.append(f'<circle class="mark" cx="{place:.1f}" cy="{y(rate[0]):.1f}" r="4.5"/></g>')
        parts.append("</g>")
    parts += _batches(rows, places, height)
    return "".join([*parts, "</svg>"])


def speedup_chart(rows: Sequence[Mapping[str, Any]]) -> str:
    """Baseline time over pruned time at every batch size, with its interval, over the band of the noise floor.

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
    told = (
        f"At batch {rows[-1]['batch']} {last['ratio']:.2f} times the speed ({last['low']:.2f} to {last['high']:.2f}). "
        "Grey: the baseline against itself."
    )
    parts = _opening("speedup", WIDTH, height, "Speed-up over batch sizes", told)
    for tick in ticks(low, high):
        kind = "axis" if tick == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4.5:.1f}" text-anchor="end">{tick:g}x</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {y(1):.1f}H{WIDTH - RIGHT}"/>')
    places = _places(len(rows))
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
    parts += _batches(rows, places, height)
    return "".join([*parts, "</svg>"])


def _opening(name: str, width: int, height: float, title: str, description: str) -> list[str]:
    return [
        f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-desc">{escape(description)}</desc>',
    ]


def _axis_name(x: float, height: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{height - 6:g}" text-anchor="middle">{escape(text)}</text>'


def _places(number: int) -> list[float]:
    """Where each batch size stands: evenly spread."""
    room = (WIDTH - RIGHT - LEFT) / number
    return [LEFT + room * (index + 0.5) for index in range(number)]


def _batches(rows: Sequence[Mapping[str, Any]], places: Sequence[float], height: float) -> list[str]:
    parts = [
        f'<text x="{place:.1f}" y="{height - BOTTOM + 20}" text-anchor="middle">{row["batch"]}</text>'
        for place, row in zip(places, rows, strict=True)
    ]
    return [*parts, _axis_name((LEFT + WIDTH - RIGHT) / 2, height, "batch size")]


def _present(latency: Mapping[str, Any]) -> tuple[str, ...]:
    return ("median_ms", "high_ms", "low_ms") if latency.get("low_ms") and latency.get("high_ms") else ("median_ms",)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between two powers of ten: 1, 2 and 5 of each, or 1 alone where there are many."""
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    candidates = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return [value for value in candidates if low <= math.log10(value) <= high]


def _round_count(value: float) -> str:
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
