"""The shape of ResNet-50 planned by time: python -m benchmarks.speed.resnet50 [--provider auto] [--speedup 1.7]

Latency depends on widths alone, so the weights are seeded noise and accuracy is not measured. Secateur's plan takes the cut
that the table of the device's times says is as fast as asked with the most MACs left: early identity blocks may go, and all
other widths, residual streams too, lose an equal share, rounded to 32. It is timed and planned again until the speed is met;
with ``--targets`` the plans for these fractions of the time are timed as they are. torch-pruning's cuts are those of half of
the MACs, by several roundings. Every file is timed in six sessions or more.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks import resnet50
from secateur import __version__
from secateur.common.environment import describe_environment
from secateur.common.files import write_json
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.explain.unit_scores import score_units
from secateur.export.measure import latency
from secateur.export.measure.fused_biases import try_fused_biases
from secateur.export.measure.latency import TimingSettings, compare_latencies
from secateur.export.measure.latency_table import measure_table
from secateur.export.measure.point_times import Conditions
from secateur.export.measure.telemetry import observed_conditions
from secateur.export.onnx.model import export_onnx
from secateur.export.onnx.precision import file_name, to_precision
from secateur.export.runtime.provider_choice import choose_provider
from secateur.network.channels.cut import cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.graph.stand_ins import Constant
from secateur.network.network import Network
from secateur.prune import surgery
from secateur.prune.budget_search.by_latency import LatencyTry, search_latency
from secateur.prune.cost import CostModel, measure_cost
from secateur.prune.plan import PruningPlan
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths.width_book import WidthBook

RESULTS = Path(__file__).parents[1] / "results" / "speed-resnet50.json"
SESSIONS, SIDE_SECONDS = 6, 0.6
ROUND_TO, MOST_BLOCKS, STEPS = 32, 8, 64
PEERS = "8,32,64"


class Shapes:
    """Plans of one network by the table of its times."""

    def __init__(self, network: Network, costs: CostModel) -> None:
        self.network, self.costs = network, costs
        self.groups = find_groups(network.module, network.example(2))
        self.units = score_units(
            self.groups, rank_kernels(RankingTask(network, resnet50.noise(network, 1)), "magnitude")
        )

    def plan(self, target: float) -> PruningPlan:
        """The plan with the most MACs left whose time is at most ``target`` of the whole's by the table."""
        book = WidthBook(self.groups, self.units, self.costs, BudgetSettings(latency=target, round_to=ROUND_TO))
        best: tuple[int, dict[str, tuple[int, ...]]] | None = None
        for blocks in range(MOST_BLOCKS + 1):
            gone = self._blocks(book)[:blocks]
            for step in range(STEPS):
                kept = {name: self._width(whole, 1 - step / STEPS) for name, whole in book.whole.items()}
                kept.update(dict.fromkeys((name for block in gone for name in block), 0))
                if book.used(kept) > book.limit:
                    continue
                removed = book.removed(kept)
                macs = self.costs.of_cut(cut_of(self.groups, removed)).macs
                if best is None or macs > best[0]:
                    best = macs, removed
                break
        assert best is not None
        cut = cut_of(self.groups, best[1])
        return PruningPlan("latency", target, self.costs.whole, self.costs.of_cut(cut), "", (), cut)

    def blocks_gone(self, plan: PruningPlan) -> list[str]:
        """The residual blocks that a plan removes whole."""
        lost = {layer for layer, part in plan.cut.items() if part.out_width and len(part.out_removed) == part.out_width}
        return sorted({group.branch for group in self.groups if group.branch and group.members[0].layer in lost})

    def _blocks(self, book: WidthBook) -> list[list[str]]:
        """The identity blocks, those first that take the most time for their MACs."""
        found = []
        for branch in dict.fromkeys(group.branch for group in self.groups if group.branch):
            names = [group.name for group in self.groups if group.branch == branch and group.name in book.whole]
            if ".0." in branch:  # its shortcut is a convolution
                continue
            ms = book.saved(book.whole, dict.fromkeys(names, 0))
            units = {name: range(book.whole[name]) for name in names}
            macs = self.costs.whole.macs - self.costs.of_cut(cut_of(self.groups, units)).macs
            found.append((ms / macs, names))
        return [names for _, names in sorted(found, reverse=True)]

    @staticmethod
    def _width(whole: int, share: float) -> int:
        return min(whole, max(min(ROUND_TO, whole), ROUND_TO * round(whole * share / ROUND_TO)))


def passing(network: Network) -> Network:
    """The network with the constants of removed blocks at zero, as a repair sets them, so that the blocks pass their input."""
    result = network.copy()
    for name, module in result.module.named_modules():
        if isinstance(module, Constant):
            norm = result.module.get_submodule(name.replace("conv", "bn"))
            for values in (module.bias, norm.bias, norm.running_mean):
                values.data.zero_()
    return result


@contextmanager
def many_sessions() -> Iterator[None]:
    """Timings in which every file has ``SESSIONS`` sessions, however long these take to open."""
    changes = {"PATIENCE": 1e9, "MIN_BLOCKS": SESSIONS, "MAX_BLOCKS": SESSIONS, "SECONDS": SIDE_SECONDS, "LONGER": 0.0}
    with mock.patch.multiple(latency, **changes):
        yield


class Device:
    """ResNet-50 on a provider: its files, and the table of its times."""

    def __init__(self, network: Network, provider: str, arguments: argparse.Namespace, folder: Path) -> None:
        self.network, self.provider, self.folder = network, provider, folder
        self.precision, self.batch, self.costs = arguments.precision, arguments.batch, measure_cost(network)
        self.settings = TimingSettings(provider, seed=arguments.seed)
        self.whole = self.exported(network, "whole")
        start = time.perf_counter()
        threads = self.settings.used_threads if provider == "cpu" else 0
        conditions = Conditions(provider, self.batch, threads, self.precision)
        groups = find_groups(network.module, network.example(2))
        table = measure_table(network, groups, self.costs, self.whole, conditions, ROUND_TO)
        self.table = {"points": table.measured_points, "seconds": time.perf_counter() - start}
        print(f"table: {self.table}", flush=True)
        self.shapes = Shapes(network, replace(self.costs, times=table))

    def exported(self, one: Network, name: str, *, clean: bool = True) -> Path:
        """A network's file in the precision that is timed."""
        path = export_onnx(one, self.folder / f"{name}.onnx", clean=clean).path
        if self.precision == "fp32":
            return path
        lower = path.with_name(file_name(path.name, self.precision))
        to_precision(path, lower, self.precision, resnet50.noise(self.network, 2), self.provider)
        return lower

    def attempt(self, target: float) -> LatencyTry:
        """The plan for a fraction of the time, measured."""
        plan, network = self.shapes.plan(target), self.network
        file = self.exported(passing(surgery.cut(network, plan)), f"try-{target:.3f}")
        tried, _ = try_fused_biases([[self.whole, file]], network.input_shape, self.batch, self.settings)
        (found,) = compare_latencies(self.whole, [file], network.input_shape, self.batch, tried)
        ratio = found.device_ratio or found.ratio
        print(
            f"target {target:.3f}: {ratio} with {plan.after.macs / self.costs.whole.macs:.3f} of the MACs", flush=True
        )
        return LatencyTry(target, target, 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low)

    def timed(self, networks: Mapping[str, Network]) -> list[dict[str, Any]]:
        """All networks against the whole, at the batch size and at batch 1 with CUDA graphs, with and without fused biases."""
        files = {"whole": self.whole, "whole, as torch exports it": self.exported(self.network, "plain", clean=False)}
        files |= {name: self.exported(one, f"cut-{index}") for index, (name, one) in enumerate(networks.items())}
        rows, cuda = [], self.provider == "cuda"
        for size, graphs in ((self.batch, False), (1, True)):
            for fused in (False, True) if cuda else (False,):
                how = replace(self.settings, cuda_graphs=graphs and cuda)
                rows.append(_timed(files, self.network, size, how, fused=fused))
                print(json.dumps(rows[-1]), flush=True)
        return rows


def measure(network: Network, provider: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Plan on the device, then time all files at every batch size."""
    with tempfile.TemporaryDirectory() as folder:
        device = Device(network, provider, arguments, Path(folder))
        targets = [float(target) for target in arguments.targets.split(",") if target]
        searched = None if targets else search_latency(device.attempt, 1 / arguments.speedup)
        if searched is not None:
            targets = [searched.best.target]
        plans = {f"secateur, planned {1 / target:.2f}": device.shapes.plan(target) for target in targets}
        networks = {name: passing(surgery.cut(network, plan)) for name, plan in plans.items()}
        peers = [int(size) for size in arguments.peers.split(",")]
        networks |= {f"torch-pruning, round_to {size}": resnet50.peers_cut(network, size) for size in peers}
        rows = device.timed(networks)
    whole = device.costs.whole.macs
    return {
        "precision": device.precision,
        "macs": whole,
        "macs_left": {name: measure_cost(one).whole.macs / whole for name, one in networks.items()},
        "blocks_gone": {name: device.shapes.blocks_gone(plan) for name, plan in plans.items()},
        "table": device.table,
        "search": searched.to_json() if searched else None,
        "latency": rows,
    }


def _timed(
    files: Mapping[str, Path], network: Network, batch: int, how: TimingSettings, *, fused: bool
) -> dict[str, Any]:
    names, paths = list(files), list(files.values())
    trials: Sequence[Any] = ()
    if fused:
        how, trials = try_fused_biases([paths], network.input_shape, batch, how)
    with observed_conditions() as conditions, many_sessions():
        found = compare_latencies(paths[0], paths[1:], network.input_shape, batch, how)
    return {
        "batch": batch,
        "cuda_graphs": how.cuda_graphs,
        "fused_biases": [asdict(trial) for trial in trials],
        "sessions": found[0].sessions,
        "whole": asdict(found[0].baseline),
        "noise_floor": asdict(found[0].noise_floor),
        "conditions": conditions.to_json(),
        "files": {
            name: {
                **asdict(one.pruned),
                "speedup": asdict(one.ratio),
                "device_speedup": asdict(one.device_ratio) if one.device_ratio else None,
            }
            for name, one in zip(names[1:], found, strict=True)
        },
    }


def show(about: str, found: Mapping[str, Any]) -> None:
    """Speedups of all files."""
    table = Table(title=f"ResNet-50 against the whole, {found['precision']}, on {about}")
    for name in ("batch", "options", "file", "MACs", "ms", "times as fast", "on the device"):
        table.add_column(name)
    for row in found["latency"]:
        options = f"{'CUDA graphs ' * row['cuda_graphs']}{'biases fused' * bool(row['fused_biases'])}"
        for name, one in row["files"].items():
            macs = found["macs_left"].get(name, 1.0)
            shown = [resnet50.ratio_text(one[key]) for key in ("speedup", "device_speedup")]
            table.add_row(str(row["batch"]), options, name, f"{macs:.3f}", f"{one['median_ms']:.3f}", *shown)
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="auto")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--speedup", type=float, default=1.7)
    parser.add_argument("--targets", default="", help="fractions of the time to plan for, instead of a search")
    parser.add_argument("--peers", default=PEERS, help="torch-pruning's round_to")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    environment = describe_environment().to_json()
    provider = choose_provider(arguments.provider).provider
    network = resnet50.whole_network(None, arguments.size, arguments.seed)
    found = measure(network, provider, arguments)
    device = environment["processor"] if provider == "cpu" else environment["gpu"]
    kept = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    about = {
        "secateur_version": __version__,
        "environment": environment,
        "seed": arguments.seed,
        "weights": "seeded noise",
    }
    kept[f"{device}, {provider}"] = {**about, **found}
    write_json(arguments.results, kept)
    show(f"{device}, {provider}", found)


if __name__ == "__main__":
    main()
