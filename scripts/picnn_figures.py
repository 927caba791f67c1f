"""Makes the sweeps' picture of docs/methods/picnn.md from the rows of ``python -m benchmarks.picnn``.

Run again: python scripts/picnn_figures.py
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
OUT, RESULTS = ROOT / "docs" / "methods" / "picnn-sweeps.svg", ROOT / "benchmarks" / "results" / "picnn.json"
LINES = {"acc1": ("ACC1", "#1b7f5c"), "acc2": ("ACC2", "#2b5fa8"), "acc3": ("ACC3", "#b5452c")}


def main() -> None:
    sweeps = json.loads(RESULTS.read_text())["sections"]["sweeps"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, sweeps["lambda"], "lambda")
    draw(right, sweeps["filters per class"], "filters per class of a new layer (dashed: STD)")
    right.set_xscale("log", base=2)
    values = sorted({row["value"] for row in sweeps["filters per class"]})
    right.set_xticks(values, [f"{value:g}" for value in values])
    figure.savefig(OUT, metadata={"Date": None})


def draw(axes: Axes, rows: list[dict[str, Any]], label: str) -> None:
    """Accuracies on the left scale, MIS over its ceiling on the right one."""
    for masks, style in (("bernoulli", "-"), ("std", "--")):
        own = [row for row in rows if row["trained by"] == masks]
        if not own:
            continue
        values = [row["value"] for row in own]
        for name, (shown, colour) in LINES.items():
            axes.plot(
                values,
                [row[name] for row in own],
                style,
                color=colour,
                marker="o",
                label=shown if masks != "std" else None,
            )
            if masks != "std":
                axes.fill_between(
                    values, [row[f"{name} interval"][0] for row in own], [row[f"{name} interval"][1] for row in own],
                    color=colour, alpha=0.12, linewidth=0,
                )  # fmt: skip
        axes.plot(
            values,
            [100 * row["mis"] for row in own],
            style,
            color="#555555",
            marker="s",
            label="100 x MIS" if masks != "std" else None,
        )
    axes.set_xlabel(label)
    axes.set_ylabel("percent, 100 x nats")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
