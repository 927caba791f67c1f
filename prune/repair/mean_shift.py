"""Mean compensation: the average contribution of removed channels is added to the layers that read them."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...network.channels.cut import Cut
from ...network.channels.zero_pad import followable
from ...network.graph.leaf_modules import ZeroPadChannels
from ...network.graph.trace import following_norms
from ...network.hooks import frozen, reading_inputs
from ...network.images.images import Images
from ...network.network import Network

MeanMaps = list[tuple[Tensor, int]]
"""(mean map ``[C_in, ...]``, number of images) for every size of map that a layer reads."""


def compensate_means(
    original: Network,
    pruned: nn.Module,
    cut: Cut,
    images: Images,
    device: str = "cpu",
    batch_size: int = 128,
    step: Callable[[int], None] = lambda count: None,
) -> tuple[str, ...]:
    """Add to every layer that reads removed channels their mean contribution, over images and positions, padding included.

    A convolution is linear, so its mean response to the removed channels is its response to their mean map. The response is
    subtracted from the running mean of the BatchNorm that follows, or else added to the layer's bias, which is created if
    there is none. A padded shortcut fills the channels that it lost with their means. ``pruned`` is changed in place.

    Args:
        original: the network that ``cut`` was applied to.
        step: called after each batch with its number of images.

    Returns:
        The names of the compensated layers.
    """
    whole = followable(original.module, original.example(1)).to(device)
    readers = {name: part.in_removed for name, part in cut.items() if part.in_removed}
    mean_maps = _mean_inputs(whole, readers, images, device, batch_size, step)
    norms = following_norms(original.module, original.example())
    compensated = []
    for name, removed in readers.items():
        if not mean_maps[name]:
            continue
        layer, target = whole.get_submodule(name), pruned.get_submodule(name)
        out_removed = set(cut[name].out_removed)
        if isinstance(layer, ZeroPadChannels) and isinstance(target, ZeroPadChannels):
            _fill(layer, target, mean_maps[name][0][0], removed, out_removed)
        elif not isinstance(layer, _ConvNd | nn.Linear):
            continue  # a selection or a mean of channels has no constant to add to
        else:
            lost = _mean_output(layer, mean_maps[name], removed)
            kept = torch.tensor(
                [channel for channel in range(len(lost)) if channel not in out_removed], dtype=torch.long
            )
            if not len(kept):
                continue
            _add(pruned, target, norms.get(name, ("", None))[0], lost[kept])
        compensated.append(name)
    return tuple(compensated)


def _mean_inputs(
    whole: nn.Module,
    readers: Mapping[str, tuple[int, ...]],
    images: Images,
    device: str,
    batch_size: int,
    step: Callable[[int], None],
) -> dict[str, MeanMaps]:
    """The mean input map of every reader; ``whole`` is on the CPU afterwards."""
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
    return {
        name: [((total / seen[name, shape]).float().cpu(), seen[name, shape]) for shape, total in by_shape.items()]
        for name, by_shape in sums.items()
    }


def _mean_output(layer: nn.Module, mean_maps: MeanMaps, removed: tuple[int, ...]) -> Tensor:
    """The response of ``layer`` to the removed channels alone, averaged over images and positions, ``[C_out]``."""
    sums, places = torch.zeros(0), 0
    for mean_map, images in mean_maps:
        dim = -1 if isinstance(layer, nn.Linear) else 0
        only = torch.zeros_like(mean_map)
        index = torch.tensor(removed)
        only.index_copy_(dim, index, mean_map.index_select(dim, index))
        with torch.no_grad():
            response: Tensor = layer(only.unsqueeze(0)) - layer(torch.zeros_like(only).unsqueeze(0))
        by_channel = response.flatten(0, -2) if isinstance(layer, nn.Linear) else response[0].flatten(1).T
        total = by_channel.sum(0) * images
        sums = sums + total if places else total
        places += len(by_channel) * images
    return sums / places


def _add(root: nn.Module, target: nn.Module, norm_name: str, lost: Tensor) -> None:
    """Add a constant per channel to the output of ``target``: through the BatchNorm that follows, or its bias."""
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
    """Fill the channels that a padded shortcut lost with their means."""
    gone = set(removed)
    means = mean_map.flatten(1).mean(1)
    fill = layer.fill.clone()
    for channel, source in enumerate(layer.source.tolist()):
        if source in gone:
            fill[channel] = means[source]
    kept = torch.tensor([channel for channel in range(len(fill)) if channel not in out_removed])
    target.fill = fill[kept]
