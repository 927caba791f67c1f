"""Accuracy against cost as inline SVG, with a mark for each candidate: pure functions of a report's values."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .axes import ticks
from .search_curve import BOTTOM, HEIGHT, RIGHT, TOP, WIDTH

COSTS = {
    "latency": ("latency_ms", "latency, ms"),
    "size": ("onnx_bytes", "size of the file, bytes"),
    "macs": ("macs", "MACs of one image"),
}
"""For each front, the field of a candidate that holds the cost, and the label of its axis."""
LEFT = 56


def front_plot(candidates: Sequence[Mapping[str, Any]], cost: str) -> str:
    """An ``<svg>`` of the candidates whose ``cost`` was measured, numbered in order; a line joins the Pareto front.

    The cost has a logarithmic axis, since precisions and cuts scale it by a factor.

    Args:
        candidates: a report's ``candidates``.
        cost: latency, size or macs.
    """
    key, label = COSTS[cost]
    shown = [(number, row) for number, row in enumerate(candidates, 1) if row[key]]
    costs: list[float] = [row[key] for _, row in shown] or [1.0]
    gains: list[float] = [100 * row["accuracy"] for _, row in shown] or [0.0]
    left, right = math.log(min(costs) / 1.15), math.log(max(costs) * 1.15)
    room = max(0.5, 0.12 * (max(gains) - min(gains)))
    low, high = min(gains) - room, max(gains) + room

    def x(value: float) -> float:
        return LEFT + (math.log(value) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y(gain: float) -> float:
        return TOP + (high - gain) / (high - low) * (HEIGHT - TOP - BOTTOM)

    title, described = f"front-{cost}-title", f"front-{cost}-desc"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{title} {described}">',
        f'<title id="{title}">Accuracy on validation images against {escape(label)}</title>',
        f'<desc id="{described}">{escape(_described(shown, cost))}</desc>',
    ]
    for tick in ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4.5:.1f}" text-anchor="end">{tick:g}%</text>')
    for value in _marks(min(costs), max(costs)):
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{_short(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(label)}</text>')
    front = sorted((row[key], row["accuracy"]) for _, row in shown if row["on_front"][cost])
    steps = [f"{x(value):.1f} {y(100 * gain):.1f}" for value, gain in front]
    if len(steps) > 1:
        parts.append(f'<path class="axis" d="M{"L".join(steps)}"/>')
    labels: list[tuple[float, float, list[int]]] = []
    for number, row in shown:
        across, down = x(row[key]), y(100 * row["accuracy"])
        kind = "held" if row["on_front"][cost] else "failed"
        words = f"{row['name']}: {100 * row['accuracy']:.2f}%, {_short(row[key])}"
        mark = f'<circle class="mark" cx="{across:.1f}" cy="{down:.1f}" r="5"/>'
        parts.append(f'<g class="{kind}"><title>{escape(words)}</title>{mark}</g>')
        for left_at, top_at, numbers in labels:
            if abs(left_at - across) < 14 and abs(top_at - down) < 14:  # their numbers would overlap
                numbers.append(number)
                break
        else:
            labels.append((across, down, [number]))
    for across, down, numbers in labels:
        text = ",".join(map(str, numbers))
        parts.append(f'<text x="{across:.1f}" y="{down - 10:.1f}" text-anchor="middle">{text}</text>')
    return "".join([*parts, "</svg>"])


def _described(shown: Sequence[tuple[int, Mapping[str, Any]]], cost: str) -> str:
    """The plot in words, for screen readers."""
    best = [row["name"] for _, row in shown if row["on_front"][cost]]
    return f"{len(shown)} candidates; on the front: {', '.join(best) or 'none'}."


def _marks(low: float, high: float) -> list[float]:
    """Two to five values of a logarithmic axis between two bounds."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) >= 2:
            return found[:: math.ceil(len(found) / 5)]
    return [low, high] if high > 1.2 * low else [low]


def _short(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"
