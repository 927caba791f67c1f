"""Blocks of the page on what a measured speed costs in accuracy."""

from benchmarks.pages.speed.tables import blocks_gone, clean, drops, shapes

RESULTS = "speed.json"
RESULTS_OF = {"shapes": "speed-resnet50.json", "blocks_gone": "speed-resnet50.json"}
"""Blocks that are made from other results."""

__all__ = ["RESULTS", "RESULTS_OF", "blocks_gone", "clean", "drops", "shapes"]
