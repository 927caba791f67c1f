"""Kill runs with kill -9 and resume them: python -m benchmarks.resume [--kills 30] [--seed 0] [--minutes 20]

`prune-and-export` runs on the embedded digits in three variants, each once undisturbed for the hashes of its files and the
seconds of its stages. Then come chains: a run into a new folder is killed with its process group, resumed and killed again, up
to five times, and finally resumed to its end. Its files must then equal those of the undisturbed run, bit for bit.

The time of one kill in every chain is in a stage drawn by its share of the undisturbed seconds, so that it is uniform in time;
the others are in the kinds of stage with the fewest kills so far, so that short ones are covered. Within its stage, the time is
uniform: a draw in [0, 1) of the undisturbed seconds after the stage has begun. The kills of a chain are in the order of the
stages, since a later one is only reached when earlier ones are done. Besides the stages there are "start" (interpreter and
imports), "report" (the report is assembled) and "files" (the files appear in the run folder).

Rows, one per chain, in the results file are not measured again. The exit code is 1 if a chain ended with other files, if a kill
left a half-written file, or if temporary files remained at the end.
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
        raise SystemExit("This benchmark needs kill -9 and process groups, so it runs on POSIX systems only.")
    parser = argparse.ArgumentParser(
        "python -m benchmarks.resume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20, help="minutes after which no new chain is started")
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
    """Whether a chain failed."""
    return bool(
        row["exit_code"] or row["differing"] or row["left_over"] or any(kill["broken"] for kill in row["kills"])
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line per chain, then the number of kills in each kind of stage."""
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
