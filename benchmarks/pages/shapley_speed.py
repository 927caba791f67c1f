"""Blocks of the page on the speed of Shapley values."""

from typing import Any

from benchmarks.pages.blocks import table, where

RESULTS = "shapley_speed.json"
WORK = {
    "training pass": "one training pass, forward and backward",
    "links into layers": "all links into layers, including the forward pass",
    "all links": "plus links into joins",
    "all links, 16 strongest": "plus selecting the 16 strongest of each node",
}


def against_shap(results: Any) -> list[str]:
    """The closed form compared with shap's DeepExplainer."""
    rows = [
        (
            row["link"],
            f"{row['shap_over_closed_form']:,.0f}",
            str(row["shap_images"]),
            f"{row['largest_difference']:.0e}",
        )
        for row in results["sections"]["digits"]
    ]
    header = ("digits, links", "`shap.DeepExplainer` over the closed form", "images timed", "largest difference")
    return [_caption(results), "", *table(header, rows)]


def against_training(results: Any) -> list[str]:
    """All links of ResNet-20 compared with a training pass."""
    rows = [
        (WORK[row["work"]], f"{row['over_training_pass']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})")
        for row in results["sections"]["resnet20"]
    ]
    return table(("ResNet-20", "over a training pass (lowest to highest)"), rows)


def _caption(results: Any) -> str:
    return f"Batch {results['batch']}, background {results['background']}, interleaved in one run; {where(results)}."
