"""The cost of ranking by gAP, compared with a training pass, captum's Conductance and ablation."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F
from torchvision import models

from benchmarks.kept_rows import SHARED, Rows
from secateur.common.environment import seed_everything
from secateur.explain.faithfulness.ablation import ablation_truth
from secateur.explain.gap.contributions import contributions
from secateur.network.graph.trace import reading_nodes, trace
from secateur.network.hooks import pick_logits
from secateur.network.images.images import Images, images_from_tensor
from secateur.network.images.pictures import Preprocessing
from secateur.network.load import load_model
from secateur.network.network import Network, Source
from secateur.network.settings import ModelSettings

RUNS = 5


def speed(name: str, seed: int) -> Rows:
    """The cost of ranking by gAP: ratios of medians, interleaved in one run."""
    seed_everything(seed)
    if name == "resnet50":
        network, batch, images = _large(), 8, 24
    else:
        settings = ModelSettings(f"{SHARED}/models/resnet_cifar.py:{name}", f"{SHARED}/models/{name}-cifar10-jpeg.pth")
        network, batch, images = load_model(settings), 64, 512
    network = _named(network)
    pixels = torch.rand(images, *network.input_shape, generator=torch.Generator().manual_seed(seed))
    given = images_from_tensor(pixels, torch.arange(images) % len(network.class_names), network.preprocessing)
    work: dict[str, Callable[[], object]] = {
        "gap": lambda: contributions(network, given, batch_size=batch),
        "training pass": lambda: _training_pass(network, given, batch),
    }
    times: dict[str, list[float]] = {label: [] for label in work}
    for _ in range(RUNS + 1):
        for label, run in work.items():
            start = time.perf_counter()
            run()
            times[label].append(time.perf_counter() - start)
    ratios = sorted(a / b for a, b in zip(times["gap"][1:], times["training pass"][1:], strict=True))
    row: dict[str, Any] = {
        "network": name, "images": images, "batch": batch, "runs": RUNS,
        "gap_seconds": statistics.median(times["gap"][1:]),
        "training_pass_seconds": statistics.median(times["training pass"][1:]),
        "gap_over_training_pass": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1],
    }  # fmt: skip
    few = given.subset(torch.arange(batch))
    each = statistics.median(_timed(lambda: contributions(network, few, batch_size=batch)) for _ in range(3))
    row["gap_seconds_one_batch"] = each
    layers, conductance = _conductance_seconds(network, few)
    row |= {
        "conductance_layers_timed": layers, "conductance_seconds_all_layers": conductance,
        "conductance_over_gap": conductance / each,
    }  # fmt: skip
    if name != "resnet50":
        kernels, naive = _one_by_one_seconds(network, few)
        batched = _timed(lambda: ablation_truth(network, few))
        row |= {
            "kernels": kernels, "ablation_one_by_one_seconds": naive, "one_by_one_over_gap": naive / each,
            "batched_ablation_seconds": batched, "batched_ablation_over_gap": batched / each,
        }  # fmt: skip
    return [row]


def _large() -> Network:
    module = models.resnet50(num_classes=1000).eval()
    return Network(module, Preprocessing((3, 224, 224), (0.5,) * 3, (0.25,) * 3), (), Source("torchvision resnet50"))


def _named(network: Network) -> Network:
    with torch.no_grad():
        classes = network.logits(network.example(1)).shape[1]
    return replace(network, class_names=tuple(f"class {index}" for index in range(classes)))


def _training_pass(network: Network, images: Images, batch_size: int) -> None:
    """Forward and backward with gradients of all weights, BatchNorm in training mode, no step."""
    module = network.module
    state = {name: value.clone() for name, value in module.named_buffers()}
    module.train()
    try:
        for batch, labels in images.batches(batch_size):
            loss = F.cross_entropy(pick_logits(module(batch)), labels)
            loss.backward()
            module.zero_grad(set_to_none=True)
    finally:
        module.eval()
        for name, value in module.named_buffers():
            value.copy_(state[name])


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _conductance_seconds(network: Network, images: Images) -> tuple[int, float]:
    """captum's Conductance with its default 50 steps, timed on a few layers spread over the network and scaled to all."""
    from captum.attr import LayerConductance

    view = trace(network.module, network.example())
    layers = list(reading_nodes(view).values())[:-1]
    timed = layers[:: max(1, len(layers) // 3)][:3]
    inputs, labels = next(images.batches(len(images)))
    seconds = 0.0
    for nodes in timed:
        explainer = LayerConductance(view, view.get_submodule(str(nodes[0].target)))
        seconds += _timed(
            lambda explainer=explainer: explainer.attribute(
                inputs, target=labels, n_steps=50, internal_batch_size=len(inputs)
            )
        )
    return len(timed), seconds * len(layers) / len(timed)


def _one_by_one_seconds(network: Network, images: Images) -> tuple[int, float]:
    """The naive ablation: a hook sets one kernel and the whole network runs, once per kernel; timed on 60 kernels and scaled to
    all.
    """
    view = trace(network.module, network.example())
    inputs, _ = next(images.batches(len(images)))
    nodes = reading_nodes(view)
    widths = {layer: view.get_submodule(layer).weight.shape[0] for layer in nodes}
    kernels = sum(widths.values())
    generator = torch.Generator().manual_seed(0)
    everything = [(layer, kernel) for layer, width in widths.items() for kernel in range(width)]
    chosen = [everything[index] for index in torch.randperm(kernels, generator=generator)[:60].tolist()]
    start = time.perf_counter()
    with torch.no_grad():
        for layer, kernel in chosen:
            module = view.get_submodule(str(nodes[layer][0].target))
            hook = module.register_forward_hook(
                lambda _, __, out, kernel=kernel: out.index_fill(1, torch.tensor([kernel]), 0.0)
            )
            view(inputs)
            hook.remove()
    return kernels, (time.perf_counter() - start) * kernels / len(chosen)
