"""kill -9 and --resume, over and over: python -m benchmarks.resume [--kills 30] [--seed 0] [--minutes 20]

`prune-and-export` on the embedded digits in three variants, each once undisturbed, for the hashes of its files and the
seconds of its stages. Then chains: a run into a fresh folder is killed with its process group, resumed, killed again, up to
five times, and after the last kill resumed to its end. Its files must then be those of the undisturbed run, bit for bit.

Moments: one kill of every chain hits a stage drawn by its share of the undisturbed seconds, so that moment is uniform in
time; the others hit the kinds of stage that were drawn least so far, so that short ones have their turn. Within its stage a
moment is uniform: a draw in [0, 1) of the undisturbed seconds after the stage has begun. A chain goes through its stages in
their order, as a later one is only reached when the earlier are done. Before the stages proper comes "start" (interpreter and
imports), after them "report" (the report is put together) and "files" (the files appear in the run folder).

Rows, one a chain, are kept in the results file and not run again. Exit code 1 if a chain ended with other files, if a kill
left a half-written file under one of our names, or if temporary files still lay about in the end.
"""

import argparse
import collections
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.resume.chains import kind, run_chain, schedule
from benchmarks.resume.runs import run_undisturbed
from secateur import __version__
from secateur.common.environment import describe_environment
from secateur.common.files import write_json

RESULTS = Path(__file__).parents[1] / "results" / "resume.json"
VARIANTS: dict[str, tuple[str, ...]] = {
    "budget": (),
    "search": ("--max-drop", "2", "--epochs", "1"),
    "rounds": ("--rounds", "2", "--macs", "0.5"),
}


def main() -> int:
    if os.name != "posix":
        raise SystemExit("This needs kill -9 and process groups, as POSIX systems have them.")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.resume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20, help="start no new chain after this long")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    header = {
        "secateur_version": __version__,
        "environment": describe_environment().to_json(),
        "torch_threads": torch.get_num_threads(),
        "seed": arguments.seed,
    }
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows: list[dict[str, Any]] = found.get("rows", []) if found.items() >= header.items() else []
    if sum(len(row["kills"]) for row in rows) < arguments.kills:
        runs = {name: run_undisturbed(options) for name, options in VARIANTS.items()}
        if rows and any(found["undisturbed"][name]["hashes"] != run.hashes for name, run in runs.items()):
            rows = []  # the code has changed since
        undisturbed = {name: asdict(run) for name, run in runs.items()}
        for number, (variant, kills) in enumerate(schedule(runs, arguments.kills, arguments.seed)):
            rows = [row for row in rows if row["chain"] != number or len(row["kills"]) >= len(kills)]
            if any(row["chain"] == number for row in rows) or time.monotonic() > end:
                continue
            rows.append({"chain": number, "variant": variant, **run_chain(runs[variant], kills)})
            print(rows[-1], flush=True)
            write_json(RESULTS, {**header, "undisturbed": undisturbed, "rows": rows})
    show(rows)
    return int(any(failed(row) for row in rows))


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a chain did not end as it should."""
    return bool(
        row["exit_code"] or row["differing"] or row["left_over"] or any(kill["broken"] for kill in row["kills"])
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line per chain, then how many kills each kind of stage had."""
    kills = [kill for row in rows for kill in row["kills"]]
    table = Table(title=f"{len(kills)} kills in {len(rows)} chains, digits")
    for name in ("chain", "variant", "killed in", "half-written", "files as undisturbed", "seconds"):
        table.add_column(name, justify="right" if name in ("chain", "half-written", "seconds") else "left")
    for row in rows:
        table.add_row(
            str(row["chain"]),
            row["variant"],
            ", ".join(kill["under_way"] for kill in row["kills"]),
            str(sum(len(kill["broken"]) for kill in row["kills"])),
            f"no: {', '.join(row['differing'])}" if row["differing"] else "yes",
            f"{row['seconds']:.0f}",
        )
    console = Console(width=120)
    console.print(table)
    counted = collections.Counter(kind(kill["under_way"]) for kill in kills)
    console.print("kills by kind of stage:", ", ".join(f"{name} {count}" for name, count in counted.most_common()))


if __name__ == "__main__":
    sys.exit(main())
