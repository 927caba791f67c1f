"""Formatting of figures for a report: shares, points, counts, bytes, times; and user text inside Markdown."""

LONGEST_CELL = 100
"""A name longer than this many characters is shortened in Markdown tables; report.json holds it in full."""


def share(value: float) -> str:
    """A share in [0, 1] as percent."""
    return f"{100 * value:.2f}%"


def points(drop: float) -> str:
    """A drop in points as a signed change of accuracy, without a negative zero."""
    return f"{-drop + 0.0:+.2f}" if abs(drop) >= 0.005 else "0.00"


def count(value: float) -> str:
    """A count with k, M or G."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {suffix}"
    return f"{value:.0f}"


def in_bytes(value: float) -> str:
    """A number of bytes with kB, MB or GB (powers of ten)."""
    for limit, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.2f} {suffix}"
    return f"{value:.0f} B"


def milliseconds(value: float) -> str:
    """A time given in milliseconds."""
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def times(ratio: float, word: str) -> str:
    """A ratio with its meaning: ``2.00x fewer``."""
    return f"{ratio:.2f}x {word}"


def figure(value: float | str | None) -> str:
    """A figure of a gate or a step: four significant digits, text unchanged, a dash if not measured."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"


def markdown_cell(text: str) -> str:
    """User text inside a Markdown table: characters that start markup, a column or a line are escaped; very long text is
    shortened.
    """
    text = " ".join(str(text).split())
    if len(text) > LONGEST_CELL:
        text = f"{text[: LONGEST_CELL - 1]}…"
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+!|~" else letter for letter in text)


def markdown_line(text: str) -> str:
    """User text as one line of Markdown outside a table; shortened at ten cells' length."""
    text = " ".join(str(text).split())
    if len(text) > 10 * LONGEST_CELL:
        text = f"{text[: 10 * LONGEST_CELL - 1]}…"
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in text)
