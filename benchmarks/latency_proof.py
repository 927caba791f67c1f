"""Coverage of the latency measurement's intervals: python -m benchmarks.latency_proof [--minutes 90] [--runs 100] [--seed 0]

For each network and batch size 100 comparisons of a file with itself (how many intervals hold 1.0, how wide they are) and 100
with a network that does 10% more work (how many intervals lie below 1.0): a few of its convolutions, whose MACs come nearest to
10% of all, run a second time with other weights, and their results are added. The two kinds alternate. Each run has its own
seed; runs in the results file are not measured again.
"""

import argparse
import copy
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from secateur import __version__
from secateur.common.environment import describe_environment, seed_everything
from secateur.common.files import write_json
from secateur.export.measure.latency import TimingSettings, compare_latencies
from secateur.export.onnx.model import export_onnx
from secateur.network.load import load_model
from secateur.network.network import Network
from secateur.network.settings import ModelSettings
from secateur.prune.cost import measure_cost

from .sections import SHARED

RESULTS = Path(__file__).parent / "results" / "latency_proof.json"
CASES = (("digits", 1), ("digits", 32), ("resnet20", 1), ("resnet20", 32))
KINDS = ("same", "more")
MORE_WORK, MOST_LAYERS = 0.1, 3


class Twice(nn.Module):
    """A convolution and a copy of it with other weights, on the same input; their sum."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.first, self.second = convolution, copy.deepcopy(convolution)
        with torch.no_grad():
            for parameter in self.second.parameters():
                parameter.normal_(0, 1e-3)

    def forward(self, images: Tensor) -> Tensor:
        total: Tensor = self.first(images) + self.second(images)
        return total


def with_more_work(network: Network, share: float = MORE_WORK) -> tuple[Network, float]:
    """The network with up to three convolutions run twice, and the share of its MACs that these are."""
    costs = measure_cost(network)
    total = costs.of({}).macs
    shares = {
        name: costs.layers[name].cost(0, 0).macs / total
        for name, module in network.module.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    choices = [some for count in range(1, MOST_LAYERS + 1) for some in itertools.combinations(shares, count)]
    chosen = min(choices, key=lambda some: abs(sum(shares[name] for name in some) - share))
    longer = network.copy()
    for name in chosen:
        parent, _, child = name.rpartition(".")
        setattr(longer.module.get_submodule(parent), child, Twice(longer.module.get_submodule(name)))
    return replace(longer, module=longer.module.eval()), sum(shares[name] for name in chosen)


def load(name: str) -> Network:
    """The digits network, or a ResNet from the shared folder."""
    if name == "digits":
        return load_model("digits")
    return load_model(
        ModelSettings(f"{SHARED}/models/resnet_cifar.py:{name}", f"{SHARED}/models/{name}-cifar10-jpeg.pth")
    )


def run(files: dict[str, Path], shape: tuple[int, int, int], batch: int, kind: str, seed: int) -> dict[str, Any]:
    """One comparison and how long it took."""
    start = time.perf_counter()
    (found,) = compare_latencies(files["same"], [files[kind]], shape, batch, TimingSettings("cpu", seed=seed))
    return {
        "kind": kind,
        "seed": seed,
        "ratio": found.ratio.ratio,
        "low": found.ratio.low,
        "high": found.ratio.high,
        "median_ms": found.baseline.median_ms,
        "samples": found.baseline.samples,
        "seconds": time.perf_counter() - start,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage and widths of the runs of a file with itself, detections of those with more work."""
    same, more = ([row for row in rows if row["kind"] == kind] for kind in KINDS)
    return {
        "same_runs": len(same),
        "hold_one": sum(row["low"] <= 1 <= row["high"] for row in same),
        "median_width": statistics.median((row["high"] - row["low"]) / row["ratio"] for row in same) if same else None,
        "more_runs": len(more),
        "found_slower": sum(row["high"] < 1 for row in more),
        "median_ratio": statistics.median(row["ratio"] for row in more) if more else None,
        "seconds_a_run": statistics.median(row["seconds"] for row in rows),
        "median_ms": statistics.median(row["median_ms"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90, help="minutes after which no new run is started")
    parser.add_argument("--runs", type=int, default=100, help="runs of each kind, network and batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    environment = describe_environment().to_json()
    content: dict[str, Any] = {
        "secateur_version": __version__,
        "environment": environment,
        "seed": arguments.seed,
        "threads": TimingSettings().used_threads,
        "cases": {},
    }
    if arguments.results.exists():
        found = json.loads(arguments.results.read_text())
        if found["environment"] != environment or found["seed"] != arguments.seed:
            raise SystemExit(
                f"{arguments.results} holds runs of another environment or seed. Move it to measure again."
            )
        content = found
    end = time.monotonic() + 60 * arguments.minutes
    seed_everything(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        networks: dict[str, tuple[dict[str, Path], tuple[int, int, int], float]] = {}
        for name in dict.fromkeys(name for name, _ in CASES):
            network = load(name)
            longer, share = with_more_work(network)
            files = {kind: Path(folder) / f"{name}-{kind}.onnx" for kind in KINDS}
            export_onnx(network, files["same"])
            export_onnx(longer, files["more"])
            networks[name] = files, network.input_shape, share
        # Interleave the cases, so that slow drift of the machine affects all of them.
        for index, (name, batch), kind in itertools.product(range(arguments.runs), CASES, KINDS):
            files, shape, share = networks[name]
            case = content["cases"].setdefault(f"{name}, batch {batch}", {"more_macs": share, "runs": []})
            seed = arguments.seed + index
            if time.monotonic() > end or any((row["kind"], row["seed"]) == (kind, seed) for row in case["runs"]):
                continue
            case["runs"].append(run(files, shape, batch, kind, seed))
            case["summary"] = summary(case["runs"])
            write_json(arguments.results, content)
    show(content)


def show(content: dict[str, Any]) -> None:
    """A row for each network and batch size."""
    table = Table(title="latency of a file against itself, and against a network with about 10% more MACs")
    for name in ("", "ms", "runs", "hold 1.0", "median width", "more MACs", "found slower", "median ratio", "s a run"):
        table.add_column(name, justify="right" if name else "left")
    for about, case in content["cases"].items():
        found = case["summary"]
        table.add_row(
            about,
            f"{found['median_ms']:.3f}",
            str(found["same_runs"]),
            str(found["hold_one"]),
            f"{100 * found['median_width']:.1f}%",
            f"{100 * case['more_macs']:.1f}%",
            f"{found['found_slower']} of {found['more_runs']}",
            f"{found['median_ratio'] or 0:.3f}",
            f"{found['seconds_a_run']:.1f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
