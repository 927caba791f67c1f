"""Blocks of the page on the coverage of latency intervals."""

from typing import Any

from benchmarks.pages.blocks import table, where

RESULTS = "latency_proof.json"


def proof(results: Any) -> list[str]:
    """Files compared with themselves, and with networks of more MACs."""
    rows = []
    for name, case in results["cases"].items():
        found = case["summary"]
        rows.append(
            (
                name,
                f"{found['hold_one']} of {found['same_runs']}",
                f"{100 * found['median_width']:.1f}%",
                f"{100 * case['more_macs']:.1f}%",
                f"{found['found_slower']} of {found['more_runs']}",
            )
        )
    header = ("file", "against itself: intervals that contain 1.0", "their median width", "more MACs", "found slower")
    return [f"{where(results)}:", "", *table(header, rows)]
