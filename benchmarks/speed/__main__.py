"""What a measured speed costs in accuracy: python -m benchmarks.speed [--minutes 60] [--networks resnet20,resnet56]

CIFAR-10 as JPEG files (from SECATEUR_SHARED, default ../shared). On the axis lies the measured speedup over a clean file of the
whole network. Every plan is searched until its file is as fast as asked, then repaired and judged on the
test images, which nothing is chosen on: of torch-pruning's criteria the one with the least divergence on validation
images counts. Rows in the results file are not measured again. ResNet-50's shape is timed by benchmarks.resnet50.
"""

import argparse
import json
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.pruning import SHARED, Bench
from benchmarks.speed.plans import PEERS, Found, Timed, as_fast, exported, proposals
from secateur import __version__
from secateur.common.environment import describe_environment
from secateur.common.files import write_json
from secateur.export.measure.latency import TimingSettings, compare_latencies
from secateur.export.measure.latency_table import measure_table
from secateur.export.measure.point_times import Conditions
from secateur.network.intervals import paired_drop_interval
from secateur.network.network import Network
from secateur.prune import surgery
from secateur.prune.repair.judging import judging
from secateur.prune.repair.repair import repair

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"
SPEEDS = (1.3, 1.6, 2.0, 2.5)
OURS = ("MACs", "time", "time, blocks", "blocks only", "random")
THEIRS = "torch-pruning"
KEYS = ("network", "batch", "precision", "speed", "kind", "repair", "seed")


class Case:
    """A network with its images and one calibration sample, and its times by batch size and precision."""

    def __init__(self, name: str, data: Path, seed: int, folder: Path) -> None:
        self.bench, self.name, self.folder = Bench(name, data, seed), name, folder
        self.judge = judging(self.bench.network, self.bench.splits.validation, seed, "cpu")
        self._timed: dict[tuple[int, str], Timed] = {}

    def timed(self, batch: int, precision: str) -> Timed:
        if (batch, precision) not in self._timed:
            settings = TimingSettings("cpu")
            baseline = exported(self.bench, self.bench.network, precision, self.folder / f"baseline-{batch}.onnx")
            conditions = Conditions("cpu", batch, settings.used_threads, precision)
            bench = self.bench
            table = measure_table(bench.network, bench.groups, bench.costs, baseline, conditions)
            self._timed[batch, precision] = Timed(baseline, table, batch, precision, settings)
        return self._timed[batch, precision]

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row: searched, repaired and judged."""
        start, timed = time.perf_counter(), self.timed(row["batch"], row["precision"])
        ways = proposals(self.bench, timed)
        if row["kind"] != THEIRS:
            found = as_fast(self.bench, timed, ways[row["kind"]], row["speed"], self.folder)
            fixed, repaired = self._repaired(found, row["repair"])
            return self._judged(row, found, fixed, repaired, start)
        tried = []
        for criterion, _ in PEERS:
            found = as_fast(self.bench, timed, ways[f"{THEIRS}, {criterion}"], row["speed"], self.folder)
            fixed, _ = self._repaired(found, row["repair"])
            tried.append((self.judge(fixed), criterion, found, fixed))
        divergence, criterion, found, fixed = min(tried, key=lambda one: one[0])
        return {**self._judged(row, found, fixed, divergence, start), "criterion": criterion}

    def exported_once(self, batch: int, precision: str) -> dict[str, Any]:
        """The whole network's file as torch exports it, against the clean one."""
        timed = self.timed(batch, precision)
        plain = exported(self.bench, self.bench.network, precision, self.folder / "plain.onnx", clean=False)
        (found,) = compare_latencies(plain, [timed.baseline], self.bench.network.input_shape, batch, timed.settings)
        return {
            "network": self.name,
            "batch": batch,
            "precision": precision,
            "clean_over_exported": asdict(found.ratio),
        }

    def _repaired(self, found: Found, kind: str) -> tuple[Network, float]:
        bench = self.bench
        small = surgery.cut(bench.network, found.plan)
        fixed, _ = repair(
            bench.network, small, bench.calibration, kind, validation=bench.splits.validation, seed=bench.seed
        )
        return fixed, self.judge(fixed)

    def _judged(
        self, row: Mapping[str, Any], found: Found, fixed: Network, divergence: float, start: float
    ) -> dict[str, Any]:
        """The repaired network's file is timed again, since a repair may add what the search did not time."""
        bench, timed = self.bench, self.timed(row["batch"], row["precision"])
        file = exported(bench, fixed, row["precision"], self.folder / "shipped.onnx")
        (shipped,) = compare_latencies(timed.baseline, [file], bench.network.input_shape, row["batch"], timed.settings)
        correct = self._correct(file, fixed, row["precision"])
        dense = self._correct(timed.baseline, bench.network, row["precision"])
        interval = paired_drop_interval(dense, correct, bench.seed)
        return {
            **row,
            "planned_speedup": asdict(found.speedup),
            "speedup": asdict(shipped.ratio),
            "tries": len(found.tries),
            "macs_left": found.plan.after.macs / bench.whole,
            "branches_gone": sorted(
                {group.branch for group in bench.groups if group.branch and _gone(found, group.members[0].layer)}
            ),
            "divergence": divergence,
            "drop_points": 100 * float(dense.mean() - correct.mean()),
            "drop_interval": asdict(interval),
            "seconds": time.perf_counter() - start,
        }

    def _correct(self, file: Path, network: Network, precision: str) -> Any:
        if precision == "fp32":
            return self.bench.dense if network is self.bench.network else self.bench.correct(network)
        from secateur.export.measure.accuracy import measure_accuracy

        test = self.bench.splits.test
        return measure_accuracy(file, test, self.bench.network.class_names, "cpu").predictions.numpy() == np.asarray(
            test.labels
        )


def _gone(found: Found, layer: str) -> bool:
    part = found.plan.cut.get(layer)
    return part is not None and part.out_width is not None and len(part.out_removed) == part.out_width


def wanted_rows(networks: Sequence[str], batches: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The wanted rows, the most informative first: batch 32 in fp32, then batch 1, int8, other seeds and distillation."""
    rows: list[tuple[Any, ...]] = []
    for seed in seeds:
        for repairing in ("reconstruct", "distill"):
            for precision in ("fp32", "int8"):
                for batch in batches:
                    rows += [
                        (network, batch, precision, speed, kind, repairing, seed)
                        for network in networks
                        for speed in SPEEDS
                        for kind in (*OURS, THEIRS)
                    ]
    # torch-pruning has no reconstruction of its own; it gets ours
    rows.sort(key=lambda row: (row[5] != "reconstruct", row[2] != "fp32", row[1] != 32, row[6]))
    return [dict(zip(KEYS, row, strict=True)) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="minutes after which no new row is started")
    parser.add_argument("--networks", default="resnet20,resnet56")
    parser.add_argument("--batches", default="32,1")
    parser.add_argument("--seeds", default="0,1,2", help="of the calibration sample and of everything drawn")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    archive = SHARED / "data" / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        raise SystemExit(f"{archive} does not exist. Set SECATEUR_SHARED to the folder with data/ and models/.")
    environment = describe_environment().to_json()
    content: dict[str, Any] = {"rows": [], "clean": []}
    if arguments.results.exists():
        kept = json.loads(arguments.results.read_text())
        if kept["environment"] == environment:
            content = kept
    content |= {
        "secateur_version": __version__,
        "environment": environment,
        "data": "CIFAR-10 as JPEG, 10,000 test images",
    }
    done = {tuple(row[key] for key in KEYS) for row in content["rows"]}
    known = {(row["network"], row["batch"], row["precision"]) for row in content["clean"]}
    end = time.monotonic() + 60 * arguments.minutes
    batches, seeds = ([int(value) for value in text.split(",")] for text in (arguments.batches, arguments.seeds))
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive, "r:xz") as file:
            file.extractall(folder, filter="data")
        cases: dict[tuple[str, int], Case] = {}
        for row in wanted_rows(arguments.networks.split(","), batches, seeds):
            if tuple(row.values()) in done or time.monotonic() > end:
                continue
            which = (row["network"], row["seed"])
            if which not in cases:
                cases[which] = Case(row["network"], Path(folder), row["seed"], Path(folder))
            settings = (row["network"], row["batch"], row["precision"])
            if settings not in known:
                content["clean"].append(cases[which].exported_once(row["batch"], row["precision"]))
                known.add(settings)
            content["rows"].append(cases[which].row(row))
            print(json.dumps(content["rows"][-1]), flush=True)
            write_json(arguments.results, content)
    show(content["rows"])


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """All rows by speed, the smallest drop first."""
    table = Table(title="CIFAR-10 as JPEG: drop in points of top-1 accuracy at a measured speed")
    names = (
        "network",
        "batch",
        "precision",
        "asked",
        "measured",
        "plan",
        "repair",
        "seed",
        "drop",
        "95% interval",
        "MACs left",
    )
    for name in names:
        table.add_column(name)
    for row in sorted(
        rows, key=lambda row: (row["network"], row["batch"], row["precision"], row["speed"], row["drop_points"])
    ):
        interval = row["drop_interval"]
        table.add_row(
            row["network"],
            str(row["batch"]),
            row["precision"],
            f"{row['speed']:g}",
            f"{row['speedup']['ratio']:.2f}",
            row["kind"],
            row["repair"],
            str(row["seed"]),
            f"{row['drop_points']:.2f}",
            f"{interval['low']:.2f} to {interval['high']:.2f}",
            f"{row['macs_left']:.3f}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
