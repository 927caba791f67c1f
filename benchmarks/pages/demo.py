"""Blocks of the demo's page."""

import statistics
from typing import Any

from benchmarks.pages.blocks import table, where

RESULTS = "demo.json"


def seeds(results: Any) -> list[str]:
    """The drop of the demo over seeds."""
    drops = [row["drop_points"] for row in results["rows"] if row["ranker"] == "gap" and row["epochs"]]
    return [
        f"Over {len(drops)} seeds the demo loses {statistics.mean(drops):.2f} points on average (standard deviation "
        f"{statistics.pstdev(drops):.2f}, at most {max(drops):.2f}; 360 test images; {where(results)})."
    ]


def rankings(results: Any) -> list[str]:
    """Every ranking without training, by seeds."""
    found: dict[str, list[float]] = {}
    for row in results["rows"]:
        if not row["epochs"]:
            found.setdefault(row["ranker"], []).append(row["drop_points"])
    rows = [
        (name, str(len(drops)), f"{statistics.mean(drops):.2f}", f"{min(drops):.2f}", f"{max(drops):.2f}")
        for name, drops in found.items()
    ]
    return table(("ranking, no training", "seeds", "drop, points", "lowest", "highest"), rows)
