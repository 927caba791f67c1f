"""gAP: gradient-based activation propagation (Cheng et al., IJCV 131(5), 2023).

For a decision F (here the logit of the image's class) and a kernel's map ``F^k``: ``G = dF/dF^k`` and ``A = G * F^k``
(eq. 3); the kernel's contribution is ``alpha_k = mean over places of A`` (eq. 4). ``F^k`` is the kernel's output after its
own normalisation and activation, where the next layers read it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..network.images import Images
from ..network.model import Network
from ..network.probe import frozen, pick_logits, reading_activations
from ..network.trace import reading_points, trace
from ..stages import Progress, silent
from .scores import KernelScores, RankingTask, register

Objective = Callable[[Tensor, Tensor], Tensor]
"""(class scores ``[n, classes]``, labels ``[n]``) to one decision per image, ``[n]``."""


@dataclass(frozen=True)
class LayerContributions:
    """Contributions of one layer's kernels, image by image.

    ``zero`` is the paper's alpha (eq. 4), ``[images, C]``: the mean over places of ``G * F``, in logits per place.
    ``gradient`` is the mean over places of G, ``[images, C]``. ``average`` is each kernel's mean activation over
    calibration images and places, ``[C]``. ``places`` is H*W: the effect of removing a kernel is ``places * alpha``.
    """

    zero: Tensor
    gradient: Tensor
    average: Tensor
    places: int

    def alpha(self, baseline: str = "zero", *, summed: bool = False) -> Tensor:
        """Contributions ``[images, C]`` against a baseline: ``zero`` (the paper's), or the kernel's ``mean`` activation,
        ``G * (F - E F)``. ``summed``: times H*W, comparable across layers."""
        if baseline not in ("zero", "mean"):
            raise ValueError(f"baseline must be zero or mean (got {baseline!r})")
        alpha = self.zero if baseline == "zero" else self.zero - self.gradient * self.average
        return alpha * self.places if summed else alpha


@dataclass(frozen=True)
class Contributions:
    """Contributions of all layers' kernels to the decisions of a set of images; ``labels`` are their classes ``[images]``."""

    layers: dict[str, LayerContributions]
    labels: Tensor
    classes: int

    def statistic(self, name: str, baseline: str = "zero", *, summed: bool = False) -> dict[str, Tensor]:
        """One number per kernel and layer, ``[C]``: ``mean``, ``mean_absolute`` or ``root_mean_square`` over images."""
        reduce = _STATISTICS[name]
        return {layer: reduce(part.alpha(baseline, summed=summed)) for layer, part in self.layers.items()}

    def per_class(self, baseline: str = "zero", *, summed: bool = False) -> dict[str, Tensor]:
        """Mean over each class's images, ``[classes, C]`` by layer; zero for a class without images."""
        counts = torch.bincount(self.labels, minlength=self.classes).clamp(min=1).unsqueeze(1)
        result = {}
        for layer, part in self.layers.items():
            alpha = part.alpha(baseline, summed=summed)
            sums = torch.zeros(self.classes, alpha.shape[1]).index_add_(0, self.labels, alpha)
            result[layer] = sums / counts
        return result


_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda alpha: alpha.mean(0),
    "mean_absolute": lambda alpha: alpha.abs().mean(0),
    "root_mean_square": lambda alpha: alpha.square().mean(0).sqrt(),
}


def class_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """The decision that gAP explains: the logit of the image's class, ``[n]``."""
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def contributions(
    network: Network,
    images: Images,
    *,
    objective: Objective = class_logit,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> Contributions:
    """Contributions of every kernel of every convolution and linear layer, one forward and one backward pass a batch.

    Source: Cheng et al. 2023, eqs. 3 and 4; the mean baseline is the first-order effect of what their section 4.1 ablates.

    Raises:
        InputError: the network's forward cannot be traced.
    """
    traced = trace(network.module, network.example()).to(device)
    points = reading_points(traced)
    channels_last = {layer: isinstance(traced.get_submodule(layer), nn.Linear) for layer in points}
    collected: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in points}
    places: dict[str, int] = {}
    done = 0
    readers = sorted({name for names in points.values() for name in names})
    with frozen(traced), reading_activations(traced, readers) as read:
        for batch, labels in images.batches(batch_size):
            for seen in read.values():
                seen.clear()
            with torch.enable_grad():
                decisions = objective(pick_logits(traced(batch.to(device))), labels.to(device))
                activations = [activation for name in readers for activation in read[name]]
                gradients = torch.autograd.grad(decisions.sum(), activations, allow_unused=True)
            gradient_of = {
                id(activation): gradient for activation, gradient in zip(activations, gradients, strict=True)
            }
            for layer, names in points.items():
                calls = [activation for name in names for activation in read[name]]
                pairs = [(activation.detach(), gradient_of[id(activation)]) for activation in calls]
                collected[layer].append(_reduce(pairs, channels_last[layer]))
                places[layer] = sum(
                    activation[0].numel() // _channels(activation, channels_last[layer]) for activation, _ in pairs
                )
            done += len(labels)
            progress(done, len(images))
    layers = {}
    for layer, parts in collected.items():
        zero, gradient, activation = (torch.cat(columns).cpu() for columns in zip(*parts, strict=True))
        layers[layer] = LayerContributions(zero, gradient, activation.mean(0), places[layer])
    classes = max(len(network.class_names), int(images.labels.max()) + 1)
    return Contributions(layers, images.labels, classes)


def _channels(activation: Tensor, channels_last: bool) -> int:
    return activation.shape[-1 if channels_last else 1]


def _reduce(calls: Sequence[tuple[Tensor, Tensor | None]], channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Means over places of ``G * F``, G and F, each ``[n, C]``; a layer called several times counts all its places."""
    sums: list[Tensor] = []
    count = 0
    for activation, gradient in calls:
        gradient = torch.zeros_like(activation) if gradient is None else gradient
        if channels_last:
            activation, gradient = (value.movedim(-1, 1) for value in (activation, gradient))
        activation, gradient = (value.reshape(*value.shape[:2], -1) for value in (activation, gradient))
        products = torch.einsum("ncp,ncp->nc", gradient, activation)
        current = torch.stack([products, gradient.sum(2), activation.sum(2)])
        sums.append(current)
        count += activation.shape[2]
    total = torch.stack(sums).sum(0) / count
    return total[0], total[1], total[2]


@register(
    "gap",
    summary="gAP contributions to the class logit: root mean square over images, against each kernel's mean activation",
    needs="labels",
    unit="logits per place",
    source="Cheng et al., IJCV 131(5), 2023, eqs. 3-4",
)
def score_gap(task: RankingTask) -> KernelScores:
    """Root mean square of the mean-baseline contributions; the signed per-class means beside it."""
    found = contributions(
        task.network, task.images, batch_size=task.batch_size, device=task.device, progress=task.progress
    )
    return KernelScores(
        "gap",
        "logits per place",
        found.statistic("root_mean_square", "mean"),
        found.per_class("mean"),
        {"images": len(task.images), "statistic": "root_mean_square", "baseline": "mean"},
    )
