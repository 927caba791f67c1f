"""Repairs without labels: mean compensation and BatchNorm re-estimation."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UsageError
from ..network.channels import Cut, followable
from ..network.images import Images
from ..network.model import Network
from ..network.probe import frozen, reading_inputs
from ..network.trace import ZeroPadChannels, following_norms
from ..recipe import REPAIRS

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RepairReport:
    """What was done: ``kind``, the layers compensated, the BatchNorms re-estimated, the images used."""

    kind: str
    compensated: tuple[str, ...]
    reestimated: tuple[str, ...]
    images: int


def repair(
    original: Network,
    pruned: Network,
    images: Images,
    kind: str = "bn",
    *,
    device: str = "cpu",
    batch_size: int = 128,
    progress: Progress = lambda done, total: None,
) -> tuple[Network, RepairReport]:
    """Repair a cut network on calibration images; no label is read. Both networks given stay as they are.

    ``none`` changes nothing; ``mean`` gives what a removed kernel made on average to what read it; ``bn`` does so and then
    re-estimates the running statistics of every BatchNorm.

    Args:
        original: the network before its last cut, which says what the removed kernels made.

    Raises:
        UsageError: no such kind.
    """
    if kind not in REPAIRS:
        raise UsageError(f"repair must be one of {', '.join(REPAIRS)} (got {kind!r}).")
    result = replace(pruned, module=followable(pruned.module, pruned.example(1)))
    passes = {"none": 0, "mean": 1, "bn": 2}[kind]
    total, counted = passes * len(images), 0

    def step(count: int) -> None:
        nonlocal counted
        counted += count
        progress(counted, total)

    compensated: tuple[str, ...] = ()
    reestimated: tuple[str, ...] = ()
    if kind != "none":
        compensated = compensate_means(original, result.module, pruned.cuts[-1], images, device, batch_size, step)
    if kind == "bn":
        reestimated = reestimate_norms(result.module, images, device, batch_size, step)
    result.module.eval()
    return result, RepairReport(kind, compensated, reestimated, len(images))


def compensate_means(
    original: Network,
    pruned: nn.Module,
    cut: Cut,
    images: Images,
    device: str = "cpu",
    batch_size: int = 128,
    step: Callable[[int], None] = lambda count: None,
) -> tuple[str, ...]:
    """Add to every reader of removed channels what they gave it on average over images and places, edges included.

    A convolution is linear, so the average of what it makes of the removed channels is what it makes of their average map.
    That goes into the running mean of the BatchNorm behind the reader, else into its bias (made if it has none); for a
    padded shortcut into what it shows in place of a lost channel. ``pruned`` is changed in place.
    """
    whole = followable(original.module, original.example(1)).to(device)
    readers = {name: part.in_removed for name, part in cut.items() if part.in_removed}
    sums: dict[str, dict[torch.Size, Tensor]] = {name: {} for name in readers}
    seen: dict[tuple[str, torch.Size], int] = defaultdict(int)

    def consume(name: str, maps: Tensor) -> None:
        total = maps.detach().double().sum(0)
        known = sums[name].get(total.shape)
        sums[name][total.shape] = total if known is None else known + total
        seen[name, total.shape] += len(maps)

    with torch.no_grad(), frozen(whole), reading_inputs(whole, readers, consume):
        for batch, labels in images.batches(batch_size):
            whole(batch.to(device))
            step(len(labels))
    whole.to("cpu")
    norms = following_norms(original.module)
    done = []
    for name, removed in readers.items():
        if not sums[name]:
            continue
        mean_maps = [
            ((total / seen[name, shape]).float().cpu(), seen[name, shape]) for shape, total in sums[name].items()
        ]
        layer, target = whole.get_submodule(name), pruned.get_submodule(name)
        out_removed = set(cut[name].out_removed)
        if isinstance(layer, ZeroPadChannels) and isinstance(target, ZeroPadChannels):
            _fill(layer, target, mean_maps[0][0], removed, out_removed)
        else:
            lost = _mean_output(layer, mean_maps, removed)
            kept = torch.tensor([channel for channel in range(len(lost)) if channel not in out_removed])
            _give_back(pruned, target, norms.get(name, ("", None))[0], lost[kept])
        done.append(name)
    return tuple(done)


def reestimate_norms(
    module: nn.Module,
    images: Images,
    device: str = "cpu",
    batch_size: int = 128,
    step: Callable[[int], None] = lambda count: None,
) -> tuple[str, ...]:
    """Set the running statistics of every BatchNorm to their plain average over batches of ``images``, in place."""
    norms = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats
    }
    if not norms or len(images) < 2:
        return ()
    momenta = {name: norm.momentum for name, norm in norms.items()}
    module.to(device).eval()
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch, labels in images.batches(batch_size):
                if len(labels) > 1:
                    module(batch.to(device))
                step(len(labels))
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.eval()
        module.to("cpu")
    return tuple(norms)


def _mean_output(layer: nn.Module, mean_maps: list[tuple[Tensor, int]], removed: tuple[int, ...]) -> Tensor:
    """What ``layer`` makes of the removed channels, averaged over images and places, ``[C_out]``.

    ``mean_maps`` holds (average map, images) for every size of map that the layer reads.
    """
    sums, places = torch.zeros(0), 0
    for mean_map, images in mean_maps:
        dim = -1 if isinstance(layer, nn.Linear) else 0
        only = torch.zeros_like(mean_map)
        index = torch.tensor(removed)
        only.index_copy_(dim, index, mean_map.index_select(dim, index))
        with torch.no_grad():
            made: Tensor = layer(only.unsqueeze(0)) - layer(torch.zeros_like(only).unsqueeze(0))
        by_channel = made.flatten(0, -2) if isinstance(layer, nn.Linear) else made[0].flatten(1).T
        total = by_channel.sum(0) * images
        sums = sums + total if places else total
        places += len(by_channel) * images
    return sums / places


def _give_back(root: nn.Module, target: nn.Module, norm_name: str, lost: Tensor) -> None:
    with torch.no_grad():
        norm = root.get_submodule(norm_name) if norm_name else None
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            norm.running_mean -= lost
        elif isinstance(getattr(target, "bias", None), nn.Parameter):
            target.bias += lost  # type: ignore[operator]
        else:
            target.register_parameter("bias", nn.Parameter(lost.clone()))


def _fill(
    layer: ZeroPadChannels, target: ZeroPadChannels, mean_map: Tensor, removed: tuple[int, ...], out_removed: set[int]
) -> None:
    gone = set(removed)
    means = mean_map.flatten(1).mean(1)
    fill = layer.fill.clone()
    for channel, source in enumerate(layer.source.tolist()):
        if source in gone:
            fill[channel] = means[source]
    kept = torch.tensor([channel for channel in range(len(fill)) if channel not in out_removed])
    target.fill = fill[kept]
