"""Ablation: the drop of a decision when one kernel is removed, the ground truth that faster scores estimate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...common.errors import InputError
from ...common.progress import Progress, silent
from ...network.graph.execution import output_node, run_graph
from ...network.graph.reach import depends_on
from ...network.graph.segment import Segment
from ...network.graph.trace import trace
from ...network.hooks import frozen, pick_logits
from ...network.images.images import Images
from ...network.network import Network
from ..gap.contributions import STATISTICS, class_means
from ..kernel_maps import KernelMaps, fill_values, kernel_maps
from ..registry import register
from ..scores import LayerScores, RankingTask

PASS_BYTES = 2**22  # for the largest map in a pass of many (image, kernel) rows: more would exceed a processor's caches
PASS_BYTES_ON_DEVICE = 2**28  # an accelerator needs many rows
KEPT_BYTES = 2**29  # for the activations of one batch that are kept to continue from
CAR_IMAGES = 256


@dataclass(frozen=True)
class LayerAblation:
    """The effect of removing each kernel of a layer, image by image.

    ``drops`` are drops of the decision in logits, ``probability_drops`` those of the class's probability, ``[images, C]``;
    ``right``, bool ``[images, C]``, tells whether the class is still predicted. ``fill`` is the value that replaced each
    kernel's map, ``[C]``.
    """

    drops: Tensor
    probability_drops: Tensor
    right: Tensor
    fill: Tensor


@dataclass(frozen=True)
class Ablation:
    """The effect of removing every kernel of the layers, one at a time.

    ``right``, bool ``[images]``, tells which images the whole network classifies correctly; ``labels`` are their classes.
    """

    layers: dict[str, LayerAblation]
    right: Tensor
    labels: Tensor
    classes: int

    def statistic(self, name: str) -> dict[str, Tensor]:
        """One drop per kernel and layer, ``[C]``: ``mean``, ``mean_absolute`` or ``root_mean_square`` over images."""
        return {layer: STATISTICS[name](part.drops) for layer, part in self.layers.items()}

    def accuracy_reduction(self) -> dict[str, Tensor]:
        """The accuracy of the whole network minus that without each kernel, in points, ``[C]`` by layer."""
        return {layer: self._lost(part).mean(0) for layer, part in self.layers.items()}

    def accuracy_reduction_per_class(self) -> dict[str, Tensor]:
        """The same on each class's images, ``[classes, C]`` by layer; zero for a class without images."""
        return {layer: class_means(self._lost(part), self.labels, self.classes) for layer, part in self.layers.items()}

    def _lost(self, part: LayerAblation) -> Tensor:
        return 100 * (self.right.float().unsqueeze(1) - part.right.float())


def ablation_truth(
    network: Network,
    images: Images,
    *,
    layers: Sequence[str] | None = None,
    fill: str = "mean",
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> Ablation:
    """Remove each kernel of the layers (of all convolutions and linear layers if None) and measure the drop of the decision.

    The decision is the logit of the image's class. A removed kernel's output after its own normalisation and activation is
    set to its ``mean`` over the images and positions, or to ``zero``, in all calls of the layer. Only the part of the network
    after the layer runs, on many rows of (image, kernel) at a time.

    Source: Cheng et al. 2023, section 4.1. Their "average activation" is computed over the data set here, since a map's own
    spatial mean has no effect before global average pooling.

    Raises:
        InputError: the network's forward cannot be traced, or a layer does not exist.
    """
    view = trace(network.module, network.example()).to(device)
    maps = _named(kernel_maps(view), layers)
    output = output_node(view)
    with torch.no_grad(), frozen(view):
        fills = fill_values(view, maps, images, fill, batch_size, device)
        sizes = _bytes_an_image(view, network.example().to(device))
        removals = [_Removal(view, part, output, fills[part.name], sizes) for part in maps]
        wanted = {output, *(node for removal in removals for node in removal.reads)}
        batch_size = max(1, min(batch_size, KEPT_BYTES // max(1, sum(sizes[node] for node in wanted))))
        parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {part.name: [] for part in maps}
        right = []
        done, total = 0, len(images) * sum(map(len, fills.values()))
        for batch, labels in images.batches(batch_size):
            batch, labels = batch.to(device), labels.to(device)
            known = run_graph(view, batch, wanted)
            whole = _Decisions(pick_logits(known[output]), labels)
            right.append(whole.right.cpu())
            for removal in removals:
                columns = [torch.zeros(len(labels), removal.kernels, device=device) for _ in range(2)]
                correct = whole.right.unsqueeze(1).repeat(1, removal.kernels)
                for rows, kernels, value in removal.run(batch, known):
                    without = _Decisions(pick_logits(value), labels[rows])
                    columns[0][rows, kernels] = whole.logits[rows] - without.logits
                    columns[1][rows, kernels] = whole.probabilities[rows] - without.probabilities
                    correct[rows, kernels] = without.right
                parts[removal.name].append((columns[0].cpu(), columns[1].cpu(), correct.cpu()))
                done += correct.numel()
                progress(done, total)
    found = {}
    for name, rows_of in parts.items():
        drops, probability_drops, correct = (torch.cat(column) for column in zip(*rows_of, strict=True))
        found[name] = LayerAblation(drops, probability_drops, correct, fills[name].cpu())
    classes = max(len(network.class_names), int(images.labels.max()) + 1)
    return Ablation(found, torch.cat(right), images.labels, classes)


def ablation_drops(
    view: fx.GraphModule, source: fx.Node, target: fx.Node, images: Tensor, decisions: Tensor, fill: Tensor
) -> Tensor:
    """The drops of decisions inside the network when a kernel of an earlier map is removed.

    Args:
        view: a traced network.
        source: the node of the map whose kernels are removed, ``[n, C, …]``.
        target: the node of the later value, ``[n, C', H', W']``, or the output node for class scores ``[n, classes]``.
        images: normalised images, ``[n, C, H, W]``.
        decisions: entries of the target, int64 ``[rows, 4]`` of (image, kernel, y, x), or ``[rows, 2]`` of (image, class) for
            class scores.
        fill: the values that replace the map's kernels, ``[C]``; the average activation in the paper.

    Returns:
        The drops ``[rows, C]`` (Cheng et al. 2023, section 4.1). Decisions on one image share forward passes.

    Raises:
        ValueError: ``target`` does not depend on ``source``.
    """
    if not depends_on(target, source):
        raise ValueError(f"{target.name} does not depend on {source.name}")
    used, own = torch.unique(decisions[:, 0].to(images.device), return_inverse=True)
    images = images.index_select(0, used)
    drops = torch.empty(len(decisions), len(fill), device=images.device)
    with torch.no_grad(), frozen(view):
        removal = _Removal(view, KernelMaps(source.name, (source,)), target, fill, _bytes_an_image(view, images[:1]))
        known = run_graph(view, images, {target, *removal.reads})
        at = decisions[:, 1:].to(images.device)
        whole = _value_of(target, known[target])[(own, *at.unbind(1))]
        for rows, kernels, value in removal.run(images, known):
            row, decision = (rows.unsqueeze(1) == own.unsqueeze(0)).nonzero(as_tuple=True)
            left = _value_of(target, value)[(row, *at[decision].unbind(1))]
            drops[decision, kernels[row]] = whole[decision] - left
    return drops


class _Removal:
    """Removes the kernels of a layer one at a time; ``reads`` are the nodes whose values it continues from."""

    def __init__(
        self, view: fx.GraphModule, maps: KernelMaps, wanted: fx.Node, fill: Tensor, sizes: dict[fx.Node, int]
    ) -> None:
        self.name, self.kernels = maps.name, len(fill)
        self._view, self._maps, self._wanted, self._fill = view, maps, wanted, fill
        self._reached = any(depends_on(wanted, node) for node in maps.nodes)
        self._segment = Segment(view, maps.nodes[0], [wanted]) if self._reached and len(maps.nodes) == 1 else None
        if self._segment is None:  # several calls: later ones may depend on earlier ones, so the whole network runs
            self.reads: tuple[fx.Node, ...] = ()
            passed = list(view.graph.nodes)
        else:
            self.reads = (self._segment.source, *self._segment.reads)
            passed = [self._segment.source, *self._segment.nodes]
        self._bytes_a_row = max(sizes[node] for node in passed)

    def run(self, images: Tensor, known: dict[fx.Node, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, for each pass, (images ``[rows]``, kernels ``[rows]``, the wanted node's value without them ``[rows, …]``).

        Yields nothing if the wanted node does not depend on the layer.
        """
        pairs = len(images) * self.kernels if self._reached else 0
        bytes_a_pass = PASS_BYTES if images.device.type == "cpu" else PASS_BYTES_ON_DEVICE
        step = max(1, bytes_a_pass // self._bytes_a_row)
        for start in range(0, pairs, step):
            part = torch.arange(start, min(start + step, pairs), device=images.device)
            rows, kernels = part // self.kernels, part % self.kernels
            removed = torch.nn.functional.one_hot(kernels, self.kernels).bool()
            if self._segment is None:
                changes = self._maps.changes(removed, self._fill)
                (value,) = run_graph(self._view, images[rows], [self._wanted], changes).values()
            else:
                maps = self._maps.filled(known[self._segment.source][rows], removed, self._fill)
                (value,) = self._segment.run(maps, images, known, rows)
            yield rows, kernels, value


class _Decisions:
    """For a batch, the logits and probabilities of the images' classes, and whether they are predicted, each ``[n]``."""

    def __init__(self, scores: Tensor, labels: Tensor) -> None:
        own = labels.unsqueeze(1)
        self.logits = scores.gather(1, own).squeeze(1)
        self.probabilities = scores.softmax(1).gather(1, own).squeeze(1)
        self.right = scores.argmax(1) == labels


def _value_of(node: fx.Node, value: object) -> Tensor:
    if node.op == "output":
        return pick_logits(value)
    assert isinstance(value, Tensor)
    return value


def _named(maps: dict[str, KernelMaps], layers: Sequence[str] | None) -> list[KernelMaps]:
    for layer in layers or ():
        if layer not in maps:
            known = ", ".join(list(maps)[:40])
            raise InputError(f"The network has no convolution or linear layer {layer!r} to ablate. It has: {known}.")
    return [part for name, part in maps.items() if layers is None or name in layers]


def _bytes_an_image(view: fx.GraphModule, example: Tensor) -> dict[fx.Node, int]:
    """The size of every node's value per image; 0 for values that are not tensors."""
    values = run_graph(view, example, view.graph.nodes)
    return {
        node: value.numel() * value.element_size() // len(example) if isinstance(value, Tensor) else 0
        for node, value in values.items()
    }


@register(
    "car",
    summary="classification accuracy reduction: points of accuracy lost when a kernel's map is set to zero",
    needs="labels",
    unit="points of accuracy",
    source="Abbasi-Asl and Yu, Structural Compression of Convolutional Neural Networks, arXiv:1705.07356, 2017",
)
def score_car(task: RankingTask) -> LayerScores:
    """The accuracy of the whole network minus that without each kernel, on at most ``CAR_IMAGES`` images.

    Accuracy changes in steps of one image, so many kernels tie. To break ties, half a step times the mean drop of the class's
    probability (which is below 1) is added. ``per_class`` holds plain points.
    """
    images = task.images.sample(CAR_IMAGES, task.seed)
    found = ablation_truth(
        task.network,
        images,
        fill="zero",
        batch_size=task.batch_size,
        device=task.device,
        progress=task.progress,
    )
    half_a_step = 50 / len(images)
    layers = {
        layer: points + half_a_step * found.layers[layer].probability_drops.mean(0)
        for layer, points in found.accuracy_reduction().items()
    }
    details = {"images": len(images), "seed": task.seed, "fill": "zero", "ties": "mean drop of the class's probability"}
    return LayerScores(layers, found.accuracy_reduction_per_class(), details)
