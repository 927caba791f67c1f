"""What every kernel contributes to a decision, for a whole batch in one forward and one backward pass.

gAP, gradient-based activation propagation (Cheng et al., IJCV 131(5), 2023). For a decision F (here the logit of the
image's class) and a kernel's map ``F^k``: ``G = dF/dF^k`` and ``A = G * F^k`` (eq. 3); the kernel's contribution is
``alpha_k = mean over places of A`` (eq. 4). ``F^k`` is the kernel's output after its own normalisation and activation, where
the next layers read it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ...common.errors import InputError
from ...common.progress import Progress, silent
from ...network.graph.execution import output_node, run_graph
from ...network.graph.trace import reading_nodes, trace
from ...network.hooks import frozen, pick_logits
from ...network.images.images import Images
from ...network.network import Network

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
        reduce = STATISTICS[name]
        return {layer: reduce(part.alpha(baseline, summed=summed)) for layer, part in self.layers.items()}

    def per_class(self, baseline: str = "zero", *, summed: bool = False) -> dict[str, Tensor]:
        """Mean over each class's images, ``[classes, C]`` by layer; zero for a class without images."""
        alphas = {layer: part.alpha(baseline, summed=summed) for layer, part in self.layers.items()}
        return {layer: class_means(alpha, self.labels, self.classes) for layer, alpha in alphas.items()}


def class_means(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean of ``[images, C]`` over each class's images, ``[classes, C]``; zero for a class without any."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).unsqueeze(1)
    return torch.zeros(classes, values.shape[1]).index_add_(0, labels, values) / counts


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
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
    at: fx.Node | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> Contributions:
    """Contributions of every kernel of every convolution and linear layer, one forward and one backward pass a batch.

    Source: Cheng et al. 2023, eqs. 3 and 4; the mean baseline is the first-order effect of what their section 4.1 ablates.

    Args:
        objective: the decision to explain, of the class scores; or of the value of ``at``.
        at: a node of a traced copy of the network, in which the work is done then; what lies behind it contributes nothing.

    Raises:
        InputError: the network's forward cannot be traced.
    """
    view = trace(network.module, network.example()) if at is None else at.graph.owning_module
    assert view is not None
    view.to(device)
    output, reading = output_node(view) if at is None else at, reading_nodes(view)
    last = {node: isinstance(view.get_submodule(layer), nn.Linear) for layer, own in reading.items() for node in own}
    collected: dict[str, list[Tensor]] = {layer: [] for layer in reading}
    places: dict[str, int] = {}
    done = 0
    with frozen(view):
        for batch, labels in images.batches(batch_size):
            calls: dict[fx.Node, _Call] = {}
            starts: list[Tensor] = []
            changes = {node: functools.partial(_reduced, node, last[node], len(labels), calls, starts) for node in last}
            with torch.enable_grad():
                value = run_graph(view, batch.to(device), [output, *last], changes)[output]
                decisions = objective(pick_logits(value) if at is None else value, labels.to(device))
                torch.autograd.grad(decisions.sum(), starts, allow_unused=True)
            for layer, nodes in reading.items():
                places[layer] = sum(calls[node].places for node in nodes)
                collected[layer].append(torch.stack([calls[node].sums for node in nodes]).sum(0) / places[layer])
            done += len(labels)
            progress(done, len(images))
    layers = {}
    for layer, parts in collected.items():
        zero, gradient, activation = torch.cat(parts, 1).cpu()
        layers[layer] = LayerContributions(zero, gradient, activation.mean(0), places[layer])
    classes = max(len(network.class_names), int(images.labels.max()) + 1)
    return Contributions(layers, images.labels, classes)


@dataclass
class _Call:
    """One call of a layer: the sums over the ``places`` of its output of ``G * F``, G and F, ``[3, n, C]``."""

    places: int
    sums: Tensor


def _reduced(
    node: fx.Node, channels_last: bool, images: int, calls: dict[fx.Node, _Call], starts: list[Tensor], output: Tensor
) -> Tensor:
    """Sum what a layer gives into ``calls``, and its gradient as soon as it comes: no gradient is kept.

    Outputs that nothing before made differentiable are the ``starts`` from which gradients are to be asked.
    """
    if not output.requires_grad:
        starts.append(output.requires_grad_())
    flat = _of_images(_flat(output.detach(), channels_last), images, str(node.target))
    none = torch.zeros_like(flat[:, :, 0])
    call = calls[node] = _Call(flat.shape[2], torch.stack([none, none, flat.sum(2)]))

    def reduce(gradient: Tensor) -> None:
        slope = _of_images(_flat(gradient, channels_last), images, str(node.target))
        call.sums[0], call.sums[1] = torch.linalg.vecdot(slope, flat), slope.sum(2)

    output.register_hook(reduce)  # type: ignore[no-untyped-call]
    return output


def _flat(values: Tensor, channels_last: bool) -> Tensor:
    """``[n, C, places]``"""
    values = values.movedim(-1, 1) if channels_last else values
    return values.reshape(*values.shape[:2], -1)


def _of_images(flat: Tensor, images: int, layer: str) -> Tensor:
    """``[images, C, places]``; windows of an image, which a layer takes as images of their own, are places of it.

    Raises:
        InputError: the layer gives something else than so many windows of each image.
    """
    if len(flat) == images:
        return flat
    if len(flat) % images:
        raise InputError(
            f"{layer} gives {len(flat)} outputs for {images} images, so its kernels cannot be explained image by image. "
            "Use --rank-by magnitude."
        )
    windows: Tensor = flat.reshape(images, -1, *flat.shape[1:])
    return windows.movedim(2, 1).flatten(2)


def reduce_places(
    calls: Sequence[tuple[Tensor, Tensor]], channels_last: bool, images: int, layer: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Means over places of ``G * F``, G and F, each ``[images, C]``, for (F, G) of every call of a layer; all places count."""
    flat = [tuple(_of_images(_flat(values, channels_last), images, layer) for values in call) for call in calls]
    places = sum(activation.shape[2] for activation, _ in flat)
    sums = [
        torch.stack([torch.linalg.vecdot(gradient, activation), gradient.sum(2), activation.sum(2)])
        for activation, gradient in flat
    ]
    total = torch.stack(sums).sum(0) / places
    return total[0], total[1], total[2]
