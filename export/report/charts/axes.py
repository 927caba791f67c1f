"""Shared parts of the charts: the SVG header, axes, ticks and short names."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 440, 54, 20, 18, 46


def opening(name: str, width: int, height: float, title: str, description: str) -> list[str]:
    return [
        f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">{escape(title)}</title>',
        f'<desc id="{name}-desc">{escape(description)}</desc>',
    ]


def axis_name(x: float, height: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{height - 6:g}" text-anchor="middle">{escape(text)}</text>'


def batch_places(number: int) -> list[float]:
    """The horizontal position of each batch size, evenly spaced."""
    room = (WIDTH - RIGHT - LEFT) / number
    return [LEFT + room * (index + 0.5) for index in range(number)]


def batches(rows: Sequence[Mapping[str, Any]], places: Sequence[float], height: float) -> list[str]:
    parts = [
        f'<text x="{place:.1f}" y="{height - BOTTOM + 20}" text-anchor="middle">{row["batch"]}</text>'
        for place, row in zip(places, rows, strict=True)
    ]
    return [*parts, axis_name((LEFT + WIDTH - RIGHT) / 2, height, "batch size")]


def present(latency: Mapping[str, Any]) -> tuple[str, ...]:
    return ("median_ms", "high_ms", "low_ms") if latency.get("low_ms") and latency.get("high_ms") else ("median_ms",)


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between two bounds: 1, 2 and 5 times each power of ten, or only the powers if there are many."""
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    candidates = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return [value for value in candidates if low <= math.log10(value) <= high]


def round_count(value: float) -> str:
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def ticks(low: float, high: float) -> list[float]:
    """About five round values between two bounds."""
    rough = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    return [round(index * step, 10) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
