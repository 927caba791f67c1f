"""Blocks of the page on some of the classes."""

from typing import Any

from benchmarks.pages.blocks import table, where

RESULTS = "kept_classes.json"


def states(results: Any) -> list[str]:
    """ResNet-20 on the kept classes, cut for all classes and for the kept ones."""
    rows = [
        (
            row["state"],
            f"{100 * row['macs']:.1f}%",
            f"{row['accuracy']:.1f}%",
            f"{row['points above the cut for all']:.1f} ({row['low']:.1f} to {row['high']:.1f})",
        )
        for row in results["sections"]["kept classes"]["resnet20"]
    ]
    first = results["sections"]["kept classes"]["resnet20"][0]
    caption = f"ResNet-20, classes {first['classes']}, {first['images']:,} test images of them, {where(results)}:"
    header = ("network", "MACs left", "accuracy", "points above the cut for all classes (95% CI)")
    return [caption, "", *table(header, rows)]
