"""A ranker by Shapley values between kernels: each kernel's share in the inputs of its readers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...common.errors import InputError
from ...network.graph.channel_origins import NONE, Site
from ...network.graph.topology import CONVOLUTION, LINEAR, Topology, find_topology
from ...network.graph.trace import trace
from ..registry import register
from ..scores import LayerScores, RankingTask
from .explainer import BACKGROUND, ShapleyExplainer, ShapleyValues

MOST_IMAGES = 1000


@register(
    "shapley",
    summary="the kernel's share in the inputs of the layers and joins that read it, by exact Shapley values",
    needs="images",
    unit="share of its readers' inputs",
    source="Shapley 1953; Lundberg and Lee, NeurIPS 2017; between kernels as in Zheng et al., Neural Networks 179, 2024",
)
def score_shapley(task: RankingTask) -> LayerScores:
    """Sum over all that read a kernel of the mean of ``|phi[i -> j]| / sum_i' |phi[i' -> j]|`` over images and channels j.

    Uses the first ``MOST_IMAGES`` images, against a background of ``BACKGROUND`` of them drawn with the seed. A layer that is
    called several times sums over its calls. Readers after an operation that mixes channels (LayerNorm, attention) have no
    closed form and do not count; layers without any other reader get no score and are listed in the details. A depthwise
    convolution reads only its own channel, so its input channels get the scores of its kernels. Per class: the mean over its
    images.

    Raises:
        InputError: the network cannot be traced, or no layer has a reader with a closed form.
    """
    images = task.images.subset(torch.arange(min(MOST_IMAGES, len(task.images))))
    topology = find_topology(trace(task.network.module, task.network.example()), task.network.example())
    kernels = {name: site for name, site in topology.sites.items() if _is_kernel(site)}
    mixers = _mixers(topology, kernels)
    if len(mixers) == len({_layer(site) for site in kernels.values()}):
        first = next((f" ({layer}: {mixer})" for layer, mixer in mixers.items()), "")
        raise InputError(
            f"No layer of this network is read before its channels are mixed{first}, so its Shapley values have no closed "
            "form. Rank by gap."
        )
    readers = [name for name, target in topology.targets.items() if not kernels.keys().isdisjoint(target.sources)]
    background = task.images.sample(BACKGROUND, task.seed)
    explainer = ShapleyExplainer(task.network, background, targets=readers, device=task.device)
    taken = _Taken(topology, kernels, max(len(task.network.class_names), int(images.labels.max()) + 1))
    done = 0
    for batch, labels in images.batches(task.batch_size):
        for values in explainer(batch):
            taken.add(values, labels)
        done += len(labels)
        task.progress(done, len(images))
    taken.pass_on_depthwise()
    by_layer = {layer: total for layer, total in taken.by_layer().items() if layer not in mixers}
    if not any(bool(total.any()) for total in by_layer.values()):
        raise InputError(
            "All Shapley values are zero, since the images are too few or identical. Use more images (--calibration)."
        )
    counts = torch.bincount(images.labels, minlength=taken.classes).clamp(min=1).unsqueeze(1)
    return LayerScores(
        {layer: (total.sum(0) / len(images)).float() for layer, total in by_layer.items()},
        {layer: (total / counts).float() for layer, total in by_layer.items()},
        {"images": len(images), "background": len(background), "no closed form": mixers},
    )


class _Taken:
    """The shares of every site's channels in the inputs of their readers, summed over images by class, ``[classes, C]`` by
    site.
    """

    def __init__(self, topology: Topology, kernels: Mapping[str, Site], classes: int) -> None:
        self.classes = classes
        self._topology, self._kernels = topology, kernels
        self._sums = {
            name: torch.zeros(classes, site.channels, dtype=torch.float64) for name, site in topology.sites.items()
        }
        self._depthwise: dict[str, ShapleyValues] = {}

    def add(self, values: ShapleyValues, labels: Tensor) -> None:
        """Add one reader's values for some images of a batch; ``labels`` are those of the whole batch."""
        if values.target in self._kernels and values.values.shape[2] == 1:
            self._depthwise[values.target] = values  # its share is always 1
            return
        part = labels[values.start : values.start + len(values.values)]
        widths = self._widths(values)
        shares = player_shares(values, sum(widths)).double().cpu()
        for name, share in zip(values.sources, torch.split(shares, widths, 1), strict=True):
            self._sums[name].index_add_(0, part, share)

    def pass_on_depthwise(self) -> None:
        """Assign to the input channels of depthwise convolutions the scores of their outputs, from the last to the first."""
        for values in reversed(self._depthwise.values()):
            widths = self._widths(values)
            passed = torch.zeros(self.classes, sum(widths), dtype=torch.float64)
            passed.index_add_(1, values.players[:, 0].clamp(min=0).cpu(), self._sums[values.target])
            for name, part in zip(values.sources, torch.split(passed, widths, 1), strict=True):
                self._sums[name] += part

    def by_layer(self) -> dict[str, Tensor]:
        """The sums of all kernels, over all calls of a layer."""
        found: dict[str, Tensor] = {}
        for name, site in self._kernels.items():
            layer = _layer(site)
            found[layer] = found[layer] + self._sums[name] if layer in found else self._sums[name]
        return found

    def _widths(self, values: ShapleyValues) -> list[int]:
        return [self._topology.sites[name].channels for name in values.sources]


def player_shares(values: ShapleyValues, players: int) -> Tensor:
    """Each player's mean share over the target's channels, ``[images, players]``: ``|phi|`` over the sum of ``|phi|``.

    Channels with all values zero contribute no shares.
    """
    sizes = values.values.abs()
    whole = sizes.sum(2, keepdim=True)
    shares = sizes / torch.where(whole > 0, whole, 1) / sizes.shape[1]
    found = shares.new_zeros(len(shares), players + 1)
    if values.players.shape[0] == 1 or values.players.stride(0) == 0:  # the same for every channel
        own, shares = values.players[0], shares.sum(1)
    else:
        own, shares = values.players.flatten(), shares.flatten(1)
    found.index_add_(1, torch.where(own == NONE, players, own), shares)
    return found[:, :players]


def _is_kernel(site: Site) -> bool:
    return site.kind in (CONVOLUTION, LINEAR) and not site.classes


def _layer(site: Site) -> str:
    return str(site.node.target)


def _mixers(topology: Topology, kernels: Mapping[str, Site]) -> dict[str, str]:
    """For each layer without a reader in closed form, the operation that mixes its channels (for the first reader)."""
    readers: dict[str, list[str]] = {_layer(site): [] for site in kernels.values()}
    for target in topology.targets.values():
        for name in target.sources:
            if name in kernels:
                readers[_layer(kernels[name])].append(target.mixer)
    return {layer: next(iter(found), "nothing reads it") for layer, found in readers.items() if all(found)}
