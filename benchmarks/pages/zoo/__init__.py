"""Blocks of the page on the networks that people bring: what is open now, and what was before."""

from benchmarks.pages.zoo.tables import before, networks, summary

RESULTS = "zoo.json"
RESULTS_OF = {"before": "zoo-before.json"}
"""Blocks that are made from other results."""

__all__ = ["RESULTS", "RESULTS_OF", "before", "networks", "summary"]
