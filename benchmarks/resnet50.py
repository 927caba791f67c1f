"""The speedup of ResNet-50 at 224 pixels with half of its MACs in ONNX Runtime.

    python -m benchmarks.resnet50 [--provider auto] [--precisions fp32,fp16] [--batches 1,64] [--weights FILE]

Secateur's cut by equal shares with several alignments of the widths, and torch-pruning's at equal MACs, all timed alternately
with the whole network in one run. Latency depends on widths alone: without ``--weights`` the weights are seeded noise, kernels
are chosen by magnitude, and accuracy is not measured. On CUDA some sizes are also timed under other session options. Results
are stored by device in benchmarks/results/resnet50.json.
"""

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch_pruning
from rich.console import Console
from rich.table import Table
from torch import nn

from secateur import __version__
from secateur.common.environment import describe_environment, seed_everything
from secateur.common.files import write_json
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask
from secateur.explain.unit_scores import score_units
from secateur.export.measure.latency import TimingSettings, compare_latencies
from secateur.export.measure.telemetry import observed_conditions
from secateur.export.onnx.model import INPUT_NAME, export_onnx
from secateur.export.onnx.precision import file_name, to_precision
from secateur.export.runtime.classifier import read_classifier
from secateur.export.runtime.provider_choice import choose_provider
from secateur.export.runtime.providers import CUDA_DEFAULTS, CudaOptions
from secateur.export.runtime.session import node_placement, open_session
from secateur.network.channels.follow import find_groups
from secateur.network.images.images import Images, images_from_tensor
from secateur.network.load import load_model
from secateur.network.network import Network
from secateur.network.settings import ModelSettings
from secateur.prune import surgery
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings
from secateur.prune.widths import width_book as widths

RESULTS = Path(__file__).parent / "results" / "resnet50.json"
MACS = 0.5
SETTLING_BATCHES, SETTLING_IMAGES = 4, 16
PEER_STEPS, PEER_MOST = 9, 0.95
ALIGNMENTS: dict[str, str | int] = {
    "no rounding": 1,
    "--round-to auto": "auto",
    "--round-to 8": 8,
    "--round-to 32": 32,
    "--round-to 64": 64,
}
STREAMS = "secateur, streams like the rest, --round-to 32"
COMPARED_IMAGES = 8


@dataclass(frozen=True)
class Condition:
    """Session options for one precision and batch size; ``aligned``: without the cuts that have no rounding."""

    name: str
    precision: str = ""
    batch: int = 0
    options: CudaOptions = CUDA_DEFAULTS
    cuda_graphs: bool = False
    aligned: bool = False

    def fits(self, provider: str, precision: str, batch: int) -> bool:
        """The first condition is for all providers, the others are for CUDA."""
        return not self.precision or (provider == "cuda" and (self.precision, self.batch) == (precision, batch))


CONDITIONS = (
    Condition("secateur's"),
    Condition("channels first", "fp16", 64, CudaOptions(channels_last=False)),
    Condition("biases fused", "fp16", 64, CudaOptions(fused_biases=True), aligned=True),
    Condition("CUDA graphs", "fp16", 1, cuda_graphs=True),
)


def whole_network(weights: str | None, size: int, seed: int) -> Network:
    """Torchvision's ResNet-50; without weights, its BatchNorms are calibrated on noise, so that activations fit float16."""
    if weights:
        return load_model(ModelSettings("resnet50", weights))
    from torchvision import models

    seed_everything(seed)
    module = models.resnet50(weights=None)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(SETTLING_BATCHES):
            module.train()(torch.randn(SETTLING_IMAGES, 3, size, size))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(module.state_dict(), Path(folder) / "noise.pt")
        return load_model(ModelSettings("resnet50", str(Path(folder) / "noise.pt")))


def secateurs_cut(network: Network, round_to: str | int, inner_share: float | None = None) -> Network:
    """Cut to half of the MACs by equal shares of the kernels of least magnitude.

    ``inner_share``: the share that layers inside blocks lose before residual streams are cut; secateur's own if None.
    """
    groups = find_groups(network.module, network.example(2))
    units = score_units(groups, rank_kernels(RankingTask(network, noise(network, 1)), "magnitude"))
    share = widths.INNER_SHARE if inner_share is None else inner_share
    with mock.patch.object(widths, "INNER_SHARE", share):
        plan = plan_pruning(groups, units, measure_cost(network), BudgetSettings(macs=MACS, round_to=round_to))
    return surgery.cut(network, plan)


def peers_cut(network: Network, round_to: int | None) -> Network:
    """torch-pruning's cut by the same magnitudes, including streams, at the lowest ratio that leaves half of the MACs."""
    whole, low, high, found = measure_cost(network).of({}).macs, 0.0, PEER_MOST, network
    for _ in range(PEER_STEPS):
        ratio = (low + high) / 2
        module = copy.deepcopy(network.module).eval()
        head = [child for child in module.modules() if isinstance(child, nn.Linear)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch_pruning.pruner.BasePruner(
                module,
                network.example(1),
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=head,
                round_to=round_to,
            ).step()
        cut = replace(network, module=module)
        if measure_cost(cut).of({}).macs <= MACS * whole:
            high, found = ratio, cut
        else:
            low = ratio
    return found


def cuts(network: Network) -> dict[str, Network]:
    """The networks that are timed against the whole, by name."""
    found = {f"secateur, {name}": secateurs_cut(network, round_to) for name, round_to in ALIGNMENTS.items()}
    found[STREAMS] = secateurs_cut(network, 32, 0.0)
    found["torch-pruning, no rounding"] = peers_cut(network, None)
    found["torch-pruning, round_to 8"] = peers_cut(network, 8)
    return found


def measure(network: Network, provider: str, precisions: list[str], batches: list[int], seed: int) -> dict[str, Any]:
    """Cut, export and time alternately: the results of every cut in every precision at every batch size."""
    costs, networks = measure_cost(network).of({}), {"whole": network, **cuts(network)}
    shares = {name: measure_cost(one).of({}).macs / costs.macs for name, one in networks.items()}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, one) in enumerate(networks.items()):
            export_onnx(one, Path(folder, f"{index}.onnx"))
            print(f"{name}: {shares[name]:.3f} of the MACs", flush=True)
        for precision in precisions:
            paths = [Path(folder, file_name(f"{index}.onnx", precision)) for index in range(len(networks))]
            for index, path in enumerate(paths):
                if precision != "fp32":
                    to_precision(Path(folder, f"{index}.onnx"), path, precision, noise(network, 32), provider)
            for batch in batches:
                for condition in (one for one in CONDITIONS if one.fits(provider, precision, batch)):
                    files = {
                        name: path
                        for name, path in zip(networks, paths, strict=True)
                        if not (condition.aligned and "no rounding" in name)
                    }
                    settings = TimingSettings(provider, 0, condition.cuda_graphs, seed, condition.options)
                    timings = timed(files, network, settings, batch)
                    found.append({"precision": precision, "batch": batch, "condition": condition.name, **timings})
                    print(json.dumps(found[-1]), flush=True)
    return {"macs": costs.macs, "parameters": costs.parameters, "macs_left": shares, "latency": found}


def timed(files: Mapping[str, Path], network: Network, settings: TimingSettings, batch: int) -> dict[str, Any]:
    """The first file compared with the others; for two files, also the placement of their nodes and the difference from the
    CPU.
    """
    start = time.perf_counter()
    (whole, *cut), paths = files, list(files.values())
    with observed_conditions() as conditions:
        compared = compare_latencies(paths[0], paths[1:], network.input_shape, batch, settings)
    images, looked_at = network.example(batch).numpy(), (whole, STREAMS)
    return {
        "whole": asdict(compared[0].baseline),
        "noise_floor": asdict(compared[0].noise_floor),
        "sessions": compared[0].sessions,
        "conditions": conditions.to_json(),
        "seconds": time.perf_counter() - start,
        "nodes": {name: node_placement(files[name], settings.provider, {INPUT_NAME: images}) for name in looked_at},
        "difference_from_cpu": {name: difference(files[name], network, settings.provider) for name in looked_at},
        "cuts": {
            name: {
                **asdict(one.pruned),
                "speedup": asdict(one.ratio),
                "device_speedup": asdict(one.device_ratio) if one.device_ratio else None,
            }
            for name, one in zip(cut, compared, strict=True)
        },
    }


def difference(path: Path, network: Network, provider: str) -> float:
    """The largest difference between a file's outputs on a provider and on the CPU, relative to the largest output."""
    images, classifier = network.example(COMPARED_IMAGES).numpy(), read_classifier(path)
    expected, found = (classifier.run(open_session(path, name).session, images) for name in ("cpu", provider))
    return float(abs(found - expected).max() / abs(expected).max())


def noise(network: Network, count: int) -> Images:
    """Seeded images of noise with the label 0."""
    pixels = torch.randint(256, (count, *network.input_shape), generator=torch.Generator().manual_seed(0))
    return images_from_tensor(pixels.to(torch.uint8), torch.zeros(count, dtype=torch.int64), network.preprocessing)


def show(about: str, found: dict[str, Any]) -> None:
    """Print speedups end to end and on the device, with a row for each cut, precision and batch size."""
    table = Table(title=f"ResNet-50 with half of its MACs, against the whole, on {about}")
    for name in (
        "precision",
        "batch",
        "session options",
        "cut",
        "MACs",
        "ms",
        "times as fast",
        "on the device",
        "noise floor",
    ):
        table.add_column(name)
    for part in found["latency"]:
        for name, one in {"whole": part["whole"], **part["cuts"]}.items():
            table.add_row(
                part["precision"],
                str(part["batch"]),
                part["condition"],
                name,
                f"{found['macs_left'][name]:.3f}",
                f"{one['median_ms']:.3f}",
                ratio_text(one.get("speedup")),
                ratio_text(one.get("device_speedup")),
                "" if "speedup" in one else ratio_text(part["noise_floor"]),
            )
    Console(width=170).print(table)


def ratio_text(values: dict[str, float] | None) -> str:
    return f"{values['ratio']:.3f} ({values['low']:.3f} to {values['high']:.3f})" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="auto")
    parser.add_argument("--precisions", default="fp32,fp16")
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--weights", help="trained weights of torchvision's resnet50; seeded noise without")
    parser.add_argument("--size", type=int, default=224, help="seed of the noise that BatchNorms are calibrated on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    environment = describe_environment().to_json()
    provider = choose_provider(arguments.provider).provider
    network = whole_network(arguments.weights, arguments.size, arguments.seed)
    batches = [int(batch) for batch in arguments.batches.split(",")]
    found = measure(network, provider, arguments.precisions.split(","), batches, arguments.seed)
    device = environment["processor"] if provider == "cpu" else environment["gpu"]
    kept = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    kept[f"{device}, {provider}"] = {
        "secateur_version": __version__,
        "environment": environment,
        "seed": arguments.seed,
        "weights": arguments.weights or "seeded noise",
        **found,
    }
    write_json(arguments.results, kept)
    show(f"{device}, {provider}", found)


if __name__ == "__main__":
    main()
