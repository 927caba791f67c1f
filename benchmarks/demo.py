"""The demo on several seeds: python -m benchmarks.demo [--minutes 10] [--seeds 5]

Every row is `prune-and-export` with its defaults on the embedded digits; only the seed changes (calibration sample,
fine-tuning order, intervals), and for the comparison the ranker. Rows in the results file are not measured again.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur import __version__, prune_and_export
from secateur.common.environment import describe_environment
from secateur.common.files import write_json
from secateur.pipeline.recipe.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "demo.json"
RANKERS = ("gap", "random", "magnitude", "bn-scale", "fpgm", "taylor", "lamp")


def run_row(ranker: str, seed: int, epochs: int) -> dict[str, Any]:
    """One run, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        recipe = Recipe().override(rank_by=ranker, seed=seed, epochs=epochs)
        report = prune_and_export(recipe, Path(folder) / "run").report
        seconds = time.perf_counter() - start
    return {
        "ranker": ranker,
        "seed": seed,
        "epochs": epochs,
        "drop_points": report["drop"]["points"],
        "drop_interval": [report["drop"]["low"], report["drop"]["high"]],
        "macs_ratio": report["ratios"]["macs"],
        "latency_ratio": report["ratios"]["latency"],
        "parity": report["parity"]["max_relative_difference"],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="minutes after which no new row is started")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    environment = describe_environment().to_json()
    rows: list[dict[str, Any]] = []
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text())
        if found["environment"] == environment and found["secateur_version"] == __version__:
            rows = found["rows"]
    done = {(row["ranker"], row["seed"], row["epochs"]) for row in rows}
    default_epochs = Recipe().recovery.epochs
    wanted = [("gap", seed, default_epochs) for seed in range(arguments.seeds)]
    wanted += [(ranker, seed, 0) for ranker in RANKERS for seed in range(arguments.seeds)]
    wanted += [(ranker, seed, default_epochs) for ranker in RANKERS[1:] for seed in range(arguments.seeds)]
    end = time.monotonic() + 60 * arguments.minutes
    for key in wanted:
        if key not in done and time.monotonic() < end:
            rows.append(run_row(*key))
            content = {"secateur_version": __version__, "environment": environment, "rows": rows}
            write_json(RESULTS, content)
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over seeds, by ranker and epochs."""
    table = Table(title="digits at half the MACs: drop in points on 360 test images, over seeds")
    for name in ("ranker", "epochs", "seeds", "mean drop", "deviation", "largest", "speedup, batch 32", "seconds"):
        table.add_column(name, justify="left" if name == "ranker" else "right")
    for ranker, epochs in dict.fromkeys((row["ranker"], row["epochs"]) for row in rows):
        some = [row for row in rows if (row["ranker"], row["epochs"]) == (ranker, epochs)]
        drops = [row["drop_points"] for row in some]
        speed = [row["latency_ratio"]["32"]["ratio"] for row in some]
        table.add_row(
            ranker,
            str(epochs),
            str(len(some)),
            f"{statistics.mean(drops):.2f}",
            f"{statistics.stdev(drops):.2f}" if len(drops) > 1 else "",
            f"{max(drops):.2f}",
            f"{statistics.median(speed):.2f}x",
            f"{statistics.mean(row['seconds'] for row in some):.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
