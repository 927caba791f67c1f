"""The chart of layer widths before and after the cut."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def width_profile(layers: Sequence[Mapping[str, Any]]) -> str:
    """Each layer as a column: its kernels before (light) and after (full), in network order.

    The view box is one unit per layer wide and 100 high, to be stretched; it has no text that stretching would distort.
    """
    widest: int = max(layer["before"] for layer in layers)
    before, after = (sum(layer[name] for layer in layers) for name in ("before", "after"))
    description = (
        f"{len(layers)} layers, the widest has {widest} kernels. In total, {before} kernels before, {after} after."
    )
    room = 0.8 if len(layers) < 120 else 1.0
    parts = [
        f'<svg class="profile" viewBox="0 0 {len(layers)} 100" preserveAspectRatio="none" role="img" '
        'aria-labelledby="profile-title profile-desc">',
        '<title id="profile-title">Kernels per layer before and after</title>',
        f'<desc id="profile-desc">{description}</desc>',
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
