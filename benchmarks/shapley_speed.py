"""The cost of Shapley values between kernels: python -m benchmarks.shapley_speed [--minutes 5]

Interleaved in one run, on a batch of 64 images with a background of 32: the closed form and ``shap.DeepExplainer`` for the same
edges, the last three links into layers of the digits network; and all links of ResNet-20 and a training pass.
ResNet-20's code is taken from SECATEUR_SHARED (default ../shared), without weights: time does not depend on them.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx, nn
from torch.nn import functional as F

from secateur import __version__
from secateur.common.environment import describe_environment, seed_everything
from secateur.common.files import write_json
from secateur.explain.shapley.explainer import ShapleyExplainer, strongest_edges
from secateur.network.graph.topology import CONVOLUTION, LINEAR, own_modules
from secateur.network.images.images import Images, images_from_tensor
from secateur.network.load import load_model
from secateur.network.network import Network

RESULTS = Path(__file__).parent / "results" / "shapley_speed.json"
SHARED = Path(os.environ.get("SECATEUR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
BATCH, BACKGROUND, LINKS, EDGES = 64, 32, 3, 16
ROUNDS = 5
FEWER = 8
"""The number of images for shap on links where the whole batch would take too long; its time is scaled."""


class Between(nn.Module):
    """The payoff of a target, ``[n, C]``, as a module: the traced network up to its own BatchNorm, and the mean over positions.

    ``start`` is called with the input of the source's readers, since shap explains the input of a module.
    """

    def __init__(self, view: fx.GraphModule, source: fx.Node, paid: fx.Node) -> None:
        super().__init__()
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        needed = {paid}
        for node in reversed(view.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        for node in view.graph.nodes:
            if node in needed:
                copies[node] = graph.node_copy(node, lambda read: copies[read])
                if node is source:
                    copies[node] = graph.call_module("start", (copies[node],))
        graph.output(copies[paid])
        root = {str(node.target): view.get_submodule(str(node.target)) for node in needed if node.op == "call_module"}
        self.inner = fx.GraphModule({**root, "start": nn.Identity()}, graph)

    @property
    def start(self) -> nn.Module:
        return self.inner.get_submodule("start")

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.inner(x)
        return value.mean((2, 3)) if value.dim() == 4 else value


def measure(minutes: float, seed: int = 0) -> dict[str, Any]:
    """Both comparisons; nothing new is started after the given minutes."""
    seed_everything(seed)
    end = time.monotonic() + 60 * minutes
    rows = {"digits": closed_form_and_shap(seed, end)}
    file = SHARED / "models" / "resnet_cifar.py"
    if file.is_file():
        rows["resnet20"] = links_and_training(file, seed, end)
    return {
        "secateur_version": __version__,
        "environment": describe_environment().to_json(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "batch": BATCH,
        "background": BACKGROUND,
        "sections": rows,
    }


def closed_form_and_shap(seed: int, end: float) -> list[dict[str, Any]]:
    """The same edges both ways, link by link, all channels of the target."""
    network = load_model("digits")
    images, background, _ = _given(network, seed)
    explainer = ShapleyExplainer(network, background)
    topology = explainer.topology
    targets = [name for name in explainer.targets if topology.sites[name].kind in (CONVOLUTION, LINEAR)][-LINKS:]
    rows = []
    for name in targets:
        (source,) = topology.targets[name].sources
        one = ShapleyExplainer(network, background, targets=[name])
        count = BATCH if topology.sites[name].channels < 16 else FEWER
        peer_explainer = _deep_explainer(one, source, name, background)
        closed, peer, ratios = [], [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            values = torch.cat([found.values for found in one(images)])
            closed.append(time.perf_counter() - start)
            start = time.perf_counter()
            wanted = _by_shap(peer_explainer, images[:count])
            peer.append((time.perf_counter() - start) * BATCH / count)
            ratios.append(peer[-1] / closed[-1])
            if time.monotonic() > end:
                break
        rows.append(
            {
                "link": f"{source} to {name}",
                "runs": len(closed),
                "closed_form_ms": 1000 * statistics.median(closed),
                "shap_ms": 1000 * statistics.median(peer),
                "shap_images": count,
                "shap_over_closed_form": statistics.median(ratios),
                "largest_difference": float((values[:count] - wanted).abs().max()),
                "largest_value": float(wanted.abs().max()),
            }
        )
    return rows


def links_and_training(file: Path, seed: int, end: float) -> list[dict[str, Any]]:
    """All links of ResNet-20, and one forward and backward pass of training on the same batch."""
    network = load_model(f"{file}:resnet20")
    images, background, labels = _given(network, seed)
    layers, every = ShapleyExplainer(network, background, joins=False), ShapleyExplainer(network, background)
    trained = network.copy().module.train()
    for parameter in trained.parameters():
        parameter.requires_grad_(True)

    def training_pass() -> None:
        F.cross_entropy(trained(images), labels).backward()
        trained.zero_grad()

    work: dict[str, Callable[[], object]] = {
        "training pass": training_pass,
        "links into layers": lambda: [None for _ in layers(images)],
        "all links": lambda: [None for _ in every(images)],
        f"all links, {EDGES} strongest": lambda: [strongest_edges(found, EDGES) for found in every(images)],
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(ROUNDS + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if round_number:  # the first warms up
                times[name].append(time.perf_counter() - start)
        if round_number and time.monotonic() > end:
            break
    rows = []
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["training pass"], strict=True)]
        rows.append(
            {
                "work": name,
                "runs": len(own),
                "ms": 1000 * statistics.median(own),
                "over_training_pass": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows


def _given(network: Network, seed: int) -> tuple[Tensor, Images, Tensor]:
    """A normalised batch, a background and labels, of noise, which takes the same time as pictures."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(BATCH + BACKGROUND, *network.input_shape, generator=generator)
    background = images_from_tensor(pixels[BATCH:], torch.zeros(BACKGROUND, dtype=torch.long), network.preprocessing)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)
    return network.preprocessing.normalise(pixels[:BATCH]), background, labels


def _deep_explainer(explainer: ShapleyExplainer, source: str, target: str, background: Images) -> Any:
    """shap's explainer of a target's payoff by the source's output."""
    from shap import DeepExplainer

    sites = explainer.topology.sites
    site = sites[target]
    own = own_modules(explainer.view, site)
    paid = next(iter(site.node.users)) if own and isinstance(own[0], nn.BatchNorm2d) else site.node
    module = Between(explainer.view, sites[source].node, paid).eval()
    ((pixels, _),) = background.batches(len(background))
    return DeepExplainer((module, module.start), pixels)


def _by_shap(explainer: Any, images: Tensor) -> Tensor:
    """``[images, channels, players]``: a channel's value is the sum over its positions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.as_tensor(explainer.shap_values(images, check_additivity=False))
    return found.flatten(2, -2).sum(2).transpose(1, 2).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="minutes after which nothing new is started")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = measure(arguments.minutes, arguments.seed)
    write_json(RESULTS, found)
    show(found["sections"])


def show(sections: dict[str, list[dict[str, Any]]]) -> None:
    """A table for each comparison."""
    for title, rows in sections.items():
        table = Table(title=title)
        for name in rows[0]:
            table.add_column(name, justify="left" if name in ("link", "work") else "right")
        for row in rows:
            table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
