"""The tables of the networks that people bring."""

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.pages.blocks import table, where

SAME = 1e-5
"""Difference between a file's class scores and the module's, of the greatest score, up to which they are the same."""
LONGEST = 110
"""Characters of a reason."""
HEAD = "its units are the classes"
Row = Mapping[str, Any]


def summary(results: Any) -> list[str]:
    """How many networks ended how."""
    lines = []
    for source, title in (("torchvision", "torchvision"), ("timm", "timm"), ("other", "others")):
        rows = [row for name, row in results["rows"].items() if name.startswith(f"{source}:") and "skipped" not in row]
        if rows:
            ended = sum(row.get("exit_code") == 0 for row in rows)
            same = sum(row.get("parity", 1) <= SAME for row in rows)
            whole = sum(row.get("opened", 0) >= 0.99 for row in rows)
            lines.append((title, *map(str, (len(rows), whole, ended, same))))
    header = ("networks of", "tried", "at least 99% of the MACs open", "exit code 0", "ONNX file equal to the module")
    return [_caption(results), "", *table(header, lines)]


def networks(results: Any) -> list[str]:
    """A row for each network."""
    rows = [
        (
            name.replace("other:", ""),
            str(row.get("pixels", "")),
            _share(row.get("opened_before")),
            _share(row.get("opened")),
            _share(row.get("lowest")),
            str(row.get("exit_code", "")),
            f"{row['parity']:.0e}" if "parity" in row else "",
            f"{row['seconds']:.0f}",
            reason(row),
        )
        for name, row in results["rows"].items()
        if "skipped" not in row
    ]
    names = (
        "network", "pixels", "open before", "open now", "lowest MACs", "exit code", "parity", "seconds",
        "what is not open, and why",
    )  # fmt: skip
    return table(names, rows)


def before(results: Any) -> list[str]:
    """What was open in the code before."""
    rows = [row for row in results["rows"].values() if "opened" in row]
    whole = sum(row["opened"] >= 0.99 for row in rows)
    refused = sum("refused" in row or "defect" in row for row in rows)
    return [
        f"At commit `{results['commit'][:7]}`, {whole} of {len(rows)} networks had at least 99% of their MACs open, "
        f"{refused} were refused whole ({where(results)})."
    ]


def reason(row: Row) -> str:
    """Why the most of a network stays as it is; empty where only the classes do."""
    for key in ("stopped", "failed", "defect", "refused"):
        if key in row:
            return _short(row[key])
    locked = [part for part in row.get("locked", ()) if HEAD not in part["reason"] and part["macs_share"] >= 0.0005]
    said = f"{_share(locked[0]['macs_share'])}: {locked[0]['reason']}" if locked else ""
    if row.get("exit_code"):
        said = f"{said} {row.get('said', '')}".strip()
    return _short(said)


def _short(text: str) -> str:
    """A message of one line without what is long or breaks a table."""
    text = re.sub(r"\s+", " ", text).replace("<", "&lt;").strip()
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition(" ")[0] + " …"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def _caption(results: Any) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in results["networks_of"].items())
    return f"{packages}; {where(results)}:"
