"""Compare secateur with torch-pruning without training: python -m benchmarks.pruning [--minutes 20]

ResNet-20 and ResNet-56 on CIFAR-10 as JPEG files (from SECATEUR_SHARED, default ../shared), with the same calibration set and
the same 10,000 test images for all. torch-pruning's BasePruner chooses kernels inside blocks only, with a ratio searched so
that the MACs fit. Every choice is repaired by BatchNorm re-estimation and by secateur's reconstruction.
Secateur's choices are all combinations of a ranking, an allocation and a repair. Some rows are fine-tuned for two
epochs, all by the same loop. Rows in the results file are not measured again; a picture is drawn from them.
"""

import argparse
import copy
import json
import os
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from rich.console import Console
from rich.table import Table

from secateur import __version__
from secateur.common.environment import describe_environment, seed_everything
from secateur.common.files import write_json
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.explain.unit_scores import score_units
from secateur.network.channels.cut import cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.channels.group import ChannelGroup
from secateur.network.channels.zero_pad import PAD_PRUNER, followable
from secateur.network.evaluation import predict
from secateur.network.graph.leaf_modules import ZeroPadChannels
from secateur.network.images.images import Images
from secateur.network.images.load import load_images
from secateur.network.intervals import paired_drop_interval
from secateur.network.load import load_model, match_classes
from secateur.network.network import Network
from secateur.network.settings import ModelSettings
from secateur.prune import surgery
from secateur.prune.cost import CostModel, measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.planning import plan_pruning
from secateur.prune.repair.fine_tune import recover
from secateur.prune.repair.repair import repair
from secateur.prune.settings import BudgetSettings, RecoverySettings
from secateur.prune.widths.measure_sensitivity import measure_sensitivity
from secateur.prune.widths.sensitivity import Sensitivity

RESULTS = Path(__file__).parent / "results" / "pruning.json"
PICTURE = Path(__file__).parents[1] / "docs" / "benchmarks" / "pruning.svg"
SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
BUDGETS = (0.77, 0.67, 0.5, 0.33)
NETWORKS = ("resnet20", "resnet56")
KEYS = ("network", "by", "choice", "allocation", "repair", "budget", "epochs")
PEERS: dict[str, Callable[[], Any]] = {
    "random": torch_pruning.importance.RandomImportance,
    "magnitude": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "bn-scale": torch_pruning.importance.BNScaleImportance,
    "lamp": lambda: torch_pruning.importance.LAMPImportance(p=2),
    "fpgm": lambda: torch_pruning.importance.FPGMImportance(p=2),
    "taylor": torch_pruning.importance.GroupTaylorImportance,
}


class Bench:
    """The values that all rows of a network share."""

    def __init__(self, name: str, data: Path, seed: int) -> None:
        seed_everything(seed)
        self.seed = seed
        settings = ModelSettings(f"{SHARED}/models/resnet_cifar.py:{name}", f"{SHARED}/models/{name}-cifar10-jpeg.pth")
        network = load_model(settings)
        self.network, self.splits = match_classes(network, load_images(str(data), network.preprocessing))
        self.calibration: Images = self.splits.train.sample(1000, seed)
        self.groups: tuple[ChannelGroup, ...] = find_groups(self.network.module, self.network.example())
        self.costs: CostModel = measure_cost(self.network)
        self.whole = self.costs.of({}).macs
        self.dense = self.correct(self.network)
        self.sensitivities: dict[str, Sensitivity] = {}

    def correct(self, network: Network) -> Any:
        labels = self.splits.test.labels
        return (predict(network.logits, self.splits.test).argmax(1) == labels).numpy()

    def units(self, ranker: str) -> Any:
        task = RankingTask(self.network, self.calibration, self.seed)
        return score_units(self.groups, rank_kernels(task, ranker))

    def sensitivity(self, ranker: str) -> Sensitivity:
        if ranker not in self.sensitivities:
            self.sensitivities[ranker] = measure_sensitivity(
                self.network, self.groups, self.units(ranker), self.calibration
            )
        return self.sensitivities[ranker]

    def plan(self, ranker: str, allocation: str, macs: float) -> PruningPlan:
        found = self.sensitivity(ranker) if allocation == "sensitivity" else None
        return plan_pruning(self.groups, self.units(ranker), self.costs, BudgetSettings(macs=macs), found)

    def peer(self, criterion: str, scope: str, macs: float) -> dict[str, Sequence[int]]:
        """The units that torch-pruning removes at the lowest ratio that meets the budget."""
        low, high, found = 0.0, 0.95, {}
        for _ in range(12):
            ratio = (low + high) / 2
            removed = self._peer_at(criterion, scope, ratio)
            if self.costs.of_cut(cut_of(self.groups, removed)).macs <= macs * self.whole:
                high, found = ratio, removed
            else:
                low = ratio
        return found

    def _peer_at(self, criterion: str, scope: str, ratio: float) -> dict[str, Sequence[int]]:
        seed_everything(self.seed)
        module = followable(copy.deepcopy(self.network.module), self.network.example(1)).eval()
        if criterion == "taylor":
            batch, labels = next(self.calibration.batches(256))
            torch.nn.functional.cross_entropy(module(batch), labels).backward()
        inner = {group.name for group in self.groups if not group.locked and not group.stream}
        ignored = [
            child
            for name, child in module.named_modules()
            if isinstance(child, torch.nn.Conv2d | torch.nn.Linear) and name not in inner
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                module,
                self.network.example(1),
                importance=PEERS[criterion](),
                global_pruning=scope == "global",
                pruning_ratio=ratio,
                max_pruning_ratio=0.95,
                ignored_layers=ignored,
                customized_pruners={ZeroPadChannels: PAD_PRUNER},
                round_to=2,
            )
            pruner.step()
        return {name: idxs for name, _, idxs in pruner.pruning_history()}

    def judge(self, network: Network, macs: float) -> dict[str, Any]:
        correct = self.correct(network)
        interval = paired_drop_interval(self.dense, correct, self.seed)
        return {
            "macs_left": macs / self.whole,
            "dense_accuracy": float(self.dense.mean()),
            "accuracy": float(correct.mean()),
            "drop_points": 100 * float(self.dense.mean() - correct.mean()),
            "drop_interval": asdict(interval),
        }


def run_row(bench: Bench, row: Mapping[str, Any]) -> dict[str, Any]:
    """One network: planned, cut, repaired and evaluated."""
    start = time.perf_counter()
    base = bench.plan("random", "uniform", row["budget"])
    if row["by"] == "secateur":
        plan = bench.plan(row["choice"], row["allocation"], row["budget"])
    else:
        cut = cut_of(bench.groups, bench.peer(row["choice"], row["allocation"], row["budget"]))
        plan = PruningPlan("macs", row["budget"], base.before, bench.costs.of_cut(cut), "", (), cut)
    small = surgery.cut(bench.network, plan)
    fixed, _ = repair(bench.network, small, bench.calibration, row["repair"], validation=bench.splits.validation)
    if row["epochs"]:
        settings = RecoverySettings(epochs=row["epochs"])
        fixed, _ = recover(bench.network, fixed, bench.splits, settings, seed=bench.seed)
    return {**row, **bench.judge(fixed, plan.after.macs), "seconds": time.perf_counter() - start}


def wanted_rows() -> list[dict[str, Any]]:
    """The wanted rows, the most informative first: secateur's default and the peers, with fine-tuning, then the other
    tables.
    """
    peers = [(name, scope) for name in PEERS for scope in ("local", "global")]
    rows: list[tuple[Any, ...]] = []
    rows += [("resnet20", "secateur", "gap", "sensitivity", "reconstruct", budget, 0) for budget in BUDGETS]
    rows += [
        ("resnet20", "secateur", choice, allocation, how, budget, 0)
        for budget in (0.5, 0.67)
        for choice in ("gap", "magnitude", "random")
        for allocation in ("sensitivity", "uniform")
        for how in ("reconstruct", "bn")
    ]
    for network, budgets in (("resnet20", BUDGETS), ("resnet56", (0.5, 0.67))):
        rows += [(network, "secateur", "gap", "sensitivity", "reconstruct", budget, 0) for budget in budgets]
        rows += [(network, "torch-pruning", *peer, "bn", budget, 0) for budget in budgets for peer in peers]
    tuned = ("fpgm", "magnitude", "taylor", "random")
    for budget in (0.5, 0.33):
        rows.append(("resnet20", "secateur", "gap", "sensitivity", "reconstruct", budget, 2))
        rows += [("resnet20", "torch-pruning", name, "global", "bn", budget, 2) for name in tuned]
    for budget in (0.5, 0.33):  # attempts to improve on the peers after fine-tuning
        rows.append(("resnet20", "secateur", "gap", "sensitivity", "distill", budget, 2))
        rows.append(("resnet20", "secateur", "gap", "uniform", "reconstruct", budget, 2))
    rows += [("resnet56", "secateur", "gap", "sensitivity", "reconstruct", budget, 0) for budget in BUDGETS]
    rows += [("resnet56", "torch-pruning", *peer, "bn", budget, 0) for budget in BUDGETS for peer in peers]
    rows += [("resnet20", "torch-pruning", *peer, "reconstruct", budget, 0) for budget in BUDGETS for peer in peers]
    rows += [("resnet20", "torch-pruning", name, "local", "bn", budget, 2) for budget in (0.5, 0.33) for name in tuned]
    return [dict(zip(KEYS, row, strict=True)) for row in dict.fromkeys(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="minutes after which no new row is started")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    archive = SHARED / "data" / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        raise SystemExit(f"{archive} does not exist. Set SECATEUR_SHARED to the folder with data/ and models/.")
    environment = describe_environment().to_json()
    rows: list[dict[str, Any]] = []
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text())
        if found["environment"] == environment and found["seed"] == arguments.seed:
            rows = found["rows"]
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive, "r:xz") as file:
            file.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        benches: dict[str, Bench] = {}
        done = {tuple(row[key] for key in KEYS) for row in rows}
        for row in wanted_rows():
            if tuple(row.values()) in done or time.monotonic() > end:
                continue
            if row["network"] not in benches:
                benches[row["network"]] = Bench(row["network"], Path(folder), arguments.seed)
            rows.append(run_row(benches[row["network"]], row))
            print(rows[-1], flush=True)
            content = {
                "secateur_version": __version__,
                "environment": environment,
                "seed": arguments.seed,
                "data": "CIFAR-10 as JPEG, 10,000 test images, 1,000 calibration images",
                "rows": rows,
            }
            write_json(RESULTS, content)
    show(rows)
    draw(rows, PICTURE)


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """All rows by budget, the smallest drop first."""
    table = Table(title="CIFAR-10 as JPEG: drop in points of top-1 accuracy")
    for name in (
        "network",
        "epochs",
        "budget",
        "by",
        "choice",
        "allocation or scope",
        "repair",
        "drop",
        "95% interval",
        "MACs left",
    ):
        table.add_column(name)
    for row in sorted(rows, key=lambda row: (row["network"], row["epochs"], -row["budget"], row["drop_points"])):
        interval = row["drop_interval"]
        table.add_row(
            row["network"],
            str(row["epochs"]),
            f"{row['budget']}",
            row["by"],
            row["choice"],
            row["allocation"],
            row["repair"],
            f"{row['drop_points']:.2f}",
            f"{interval['low']:.2f} to {interval['high']:.2f}",
            f"{row['macs_left']:.3f}",
        )
    Console(width=150).print(table)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the drop against the MACs that are left, with a panel per network and number of epochs: secateur's default and every
    peer.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "secateur"
    from matplotlib import pyplot

    shown = [row for row in rows if row["repair"] == "bn" or row["allocation"] == "sensitivity"]
    panels = sorted({(row["network"], row["epochs"]) for row in shown})
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, (network, epochs) in zip(axes[0], panels, strict=True):
        inside = [row for row in shown if (row["network"], row["epochs"]) == (network, epochs)]
        peers = [row for row in inside if row["by"] == "torch-pruning"]
        for index, choice in enumerate(PEERS):
            points = [(row["macs_left"], row["drop_points"]) for row in peers if row["choice"] == choice]
            axis.scatter(*zip(*points, strict=True) if points else ([], []), s=18, color=f"C{index + 1}", label=choice)
        own = [
            row
            for row in inside
            if row["by"] == "secateur" and row["repair"] == "reconstruct" and row["choice"] == "gap"
        ]
        own.sort(key=lambda row: row["macs_left"])
        axis.errorbar(
            [row["macs_left"] for row in own],
            [row["drop_points"] for row in own],
            [
                [row["drop_points"] - row["drop_interval"]["low"] for row in own],
                [row["drop_interval"]["high"] - row["drop_points"] for row in own],
            ],
            color="black",
            marker="D",
            capsize=3,
            label="secateur",
        )
        axis.set_title(f"{network}, {epochs} epochs of fine-tuning" if epochs else f"{network}, no training")
        axis.set_xlabel("share of the MACs that is left")
        axis.set_ylabel("points of top-1 accuracy lost")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small", title="torch-pruning by", title_fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
