"""Blocks of the page on runs that are killed."""

from collections import Counter
from typing import Any

from benchmarks.pages.blocks import table, where

RESULTS = "resume.json"
VARIANTS = {"budget": "the demo", "search": "a search, `--max-drop 2`", "rounds": "two rounds"}


def chains(results: Any) -> list[str]:
    """Chains of kills, and whether the files equal those of the undisturbed run."""
    rows = []
    for row in results["rows"]:
        stages = Counter(kill["under_way"].split(" ")[0] for kill in row["kills"])
        broken = sum(len(kill["broken"]) for kill in row["kills"])
        rows.append(
            (
                VARIANTS[row["variant"]],
                str(len(row["kills"])),
                ", ".join(stages),
                str(broken),
                "equal" if not row["differing"] else ", ".join(row["differing"]),
            )
        )
    header = ("run", "kills", "killed in", "half-written files", "final files")
    kills = sum(len(row["kills"]) for row in results["rows"])
    caption = f"{kills} kills with `kill -9` in {len(rows)} chains, at seeded moments; {where(results)}:"
    return [caption, "", *table(header, rows, left=1)]
