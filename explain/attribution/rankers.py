"""Attributions from captum, reduced to kernels: conductance, internal influence, LRP, integrated gradients, DeepLIFT.

captum runs on a traced copy of the network in which every call is a module of its own (see ``captum_views``), at the places
where the next layers read a convolution's or linear layer's output, after its own normalisation and activation. What is
attributed is the logit of the image's class. As for gAP, an image's attribution ``A[k]`` to a kernel's map is reduced to one
signed number: here the sum over places, so that (but for internal influence) the kernels of a layer that everything passes
through share out the logit or its change from the baseline; gAP's alpha times H*W is the same quantity. The score is its root
mean square over images, as for gAP, because signed means cancel between images; within a layer the two differ by the method
and the constant H*W alone.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ...common.progress import Progress, silent
from ...network.images.images import Images
from ...network.network import Network
from ..gap.contributions import STATISTICS, class_means
from ..registry import register
from ..scores import KernelScores, RankingTask
from .graph_views import (
    EPSILON,
    CaptumView,
    ClassScores,
    GatheredPoints,
    make_view,
    prepare_for_deep_lift,
    prepare_for_lrp,
)
from .multipliers import SMALL

IMAGES = 128  # at most, a seeded and stratified sample: the path methods run the network at every step for each

# Along the path from the baseline. 50 is captum's default; with 20, conductance on a ResNet-20 is off by up to a quarter of its
# size, while integrated gradients, which run anew for every layer, are within 2% of 100 steps.
STEPS = 50
STEPS_BY_LAYER = 20
BASELINE = "zero image after normalisation"

Attribute = Callable[[Tensor, Tensor], list[Tensor]]
"""(normalised images ``[n, C, H, W]``, labels ``[n]``) to the attributions at every point, each of its activation's shape."""


@dataclass(frozen=True)
class Attributions:
    """Attributions of the class logits to kernels: ``layers`` maps a layer's name to signed sums over places, ``[images, C]``.

    A layer called several times counts all its calls; one that does not reach the logits has zeros.
    """

    layers: Mapping[str, Tensor]
    labels: Tensor
    classes: int

    def root_mean_square(self) -> dict[str, Tensor]:
        """Over images, ``[C]`` by layer."""
        return {layer: STATISTICS["root_mean_square"](values) for layer, values in self.layers.items()}

    def per_class(self) -> dict[str, Tensor]:
        """Signed means over each class's images, ``[classes, C]`` by layer; zero for a class without images."""
        return {layer: class_means(values, self.labels, self.classes) for layer, values in self.layers.items()}


@dataclass(frozen=True)
class Method:
    """How captum is run: ``prepare`` takes a view and the rows of a pass, and gives the function for a batch of images.

    ``rows`` is how many rows of a pass an image takes: itself, its baseline, or some steps of its path.
    """

    name: str
    rows: int
    prepare: Callable[[CaptumView, int], Attribute]


def attribute(
    network: Network,
    images: Images,
    method: str,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> Attributions:
    """Attributions to the kernels of every convolution and linear layer, by ``METHODS[method]``.

    The baseline of the methods that have one is an image of zeros after normalisation (the mean colour, where images are
    normalised by it). ``batch_size`` is the number of rows, images times steps, of a pass.

    Raises:
        InputError: the network's forward cannot be traced, or the method has no rule for something in it.
    """
    chosen = METHODS[method]
    view = make_view(network, device)
    names = view.names
    collected: dict[str, list[Tensor]] = {layer: [] for layer in view.points}
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum's, on the hooks it sets and takes away
        run = chosen.prepare(view, batch_size)
        for batch, labels in images.batches(max(1, batch_size // chosen.rows)):
            found = run(batch.to(device).requires_grad_(), labels.to(device)) if names else []
            by_point = dict(zip(names, found, strict=True))
            for layer, points in view.points.items():
                total = torch.zeros(len(labels), view.channels[layer])
                for name in points:
                    total += _sum_over_places(by_point[name].detach(), view.channels_last[layer]).cpu()
                collected[layer].append(total)
            done += len(labels)
            progress(done, len(images))
    classes = max(len(network.class_names), int(images.labels.max()) + 1)
    return Attributions({layer: torch.cat(parts) for layer, parts in collected.items()}, images.labels, classes)


def _sum_over_places(values: Tensor, channels_last: bool) -> Tensor:
    values = values.movedim(-1, 1) if channels_last else values
    return values.reshape(*values.shape[:2], -1).sum(2)


def _prepare_conductance(view: CaptumView, rows: int) -> Attribute:
    from captum.attr import LayerConductance

    return _prepare_path(LayerConductance, view, rows)


def _prepare_internal_influence(view: CaptumView, rows: int) -> Attribute:
    from captum.attr import InternalInfluence

    return _prepare_path(InternalInfluence, view, rows)


def _prepare_path(kind: Any, view: CaptumView, rows: int) -> Attribute:
    """Path methods over the images: one pass for all points."""
    module = GatheredPoints(view.traced, view.names)
    peer = kind(module, module.gather)

    def run(images: Tensor, labels: Tensor) -> list[Tensor]:
        found = peer.attribute(
            images,
            target=labels,
            n_steps=STEPS,
            internal_batch_size=max(rows, 2 * len(images)),
            attribute_to_layer_input=True,
        )
        return list(found[1:])

    return run


def _prepare_integrated_gradients(view: CaptumView, rows: int) -> Attribute:
    """One point after the other: given several, captum moves all at once, and those behind hide those before."""
    from captum.attr import LayerIntegratedGradients

    module = ClassScores(view.traced)
    peers = [LayerIntegratedGradients(module, view.traced.get_submodule(name)) for name in view.names]

    def run(images: Tensor, labels: Tensor) -> list[Tensor]:
        size = max(rows, len(images))
        return [
            peer.attribute(images, target=labels, n_steps=STEPS_BY_LAYER, internal_batch_size=size) for peer in peers
        ]

    return run


def _prepare_deep_lift(view: CaptumView, rows: int) -> Attribute:
    from captum.attr import LayerDeepLift

    prepare_for_deep_lift(view)
    module = GatheredPoints(view.traced, view.names)

    def run(images: Tensor, labels: Tensor) -> list[Tensor]:
        peer = LayerDeepLift(module, module.gather)  # anew: it keeps the handles of its hooks
        peer.eps = SMALL
        return list(peer.attribute(images, target=labels, attribute_to_layer_input=True)[1:])

    return run


def _prepare_lrp(view: CaptumView, rows: int) -> Attribute:
    from captum.attr import LayerLRP

    lay_rules = prepare_for_lrp(view)
    module = ClassScores(view.traced)
    points: list[Any] = [view.traced.get_submodule(name) for name in view.names]

    def run(images: Tensor, labels: Tensor) -> list[Tensor]:
        lay_rules()
        return list(LayerLRP(module, points).attribute(images, target=labels))

    return run


METHODS = {
    method.name: method
    for method in (
        Method("conductance", 8, _prepare_conductance),
        Method("internal-influence", 8, _prepare_internal_influence),
        Method("integrated-gradients", 8, _prepare_integrated_gradients),
        Method("deep-lift", 2, _prepare_deep_lift),
        Method("lrp", 1, _prepare_lrp),
    )
}


def _score(task: RankingTask, method: str, unit: str, **details: Any) -> KernelScores:
    images = task.images.sample(IMAGES, task.seed)
    found = attribute(
        task.network, images, method, batch_size=task.batch_size, device=task.device, progress=task.progress
    )
    about = {"images": len(images), "statistic": "root_mean_square", "captum": version("captum"), **details}
    return KernelScores(method, unit, found.root_mean_square(), found.per_class(), about)


@register(
    "conductance",
    summary=f"the logit's change on the way from a zero image that flows through a kernel: {IMAGES} images, {STEPS} steps",
    needs="labels",
    unit="logits",
    source="Dhamdhere et al., How Important Is a Neuron?, ICLR 2019, eq. 3; Shrikumar et al. 2018",
)
def score_conductance(task: RankingTask) -> KernelScores:
    """Root mean square over images of the summed conductance; over a layer that everything passes it sums to F(x) - F(0)."""
    return _score(task, "conductance", "logits", steps=STEPS, baseline=BASELINE)


@register(
    "internal-influence",
    summary=f"mean gradient of the logit to a kernel's map on the way from a zero image: {IMAGES} images, {STEPS} steps",
    needs="labels",
    unit="logits per unit of activation",
    source="Leino et al., Influence-Directed Explanations for Deep Convolutional Networks, ITC 2018, def. 1",
)
def score_internal_influence(task: RankingTask) -> KernelScores:
    """Root mean square over images of the influence summed over places. It does not see how strong the kernel itself is."""
    unit = "logits per unit of activation"
    return _score(task, "internal-influence", unit, steps=STEPS, baseline=BASELINE)


@register(
    "integrated-gradients",
    summary=f"integrated gradients from a layer's output for a zero image to its own: {IMAGES} images, {STEPS_BY_LAYER} steps",
    needs="labels",
    unit="logits",
    source="Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017, eq. 1, on a layer's output",
)
def score_integrated_gradients(task: RankingTask) -> KernelScores:
    """Root mean square over images of the integral along the straight line between a layer's two outputs, layer by layer."""
    return _score(task, "integrated-gradients", "logits", steps=STEPS_BY_LAYER, baseline=BASELINE)


@register(
    "deep-lift",
    summary=f"DeepLIFT contributions of a kernel's map against its map for a zero image, rescale rule: {IMAGES} images",
    needs="labels",
    unit="logits",
    source="Shrikumar et al., Learning Important Features Through Propagating Activation Differences, ICML 2017, section 3.5.1",
)
def score_deep_lift(task: RankingTask) -> KernelScores:
    """Root mean square over images of multiplier times difference; over a layer that all passes it sums to F(x) - F(0)."""
    return _score(task, "deep-lift", "logits", baseline=BASELINE)


@register(
    "lrp",
    summary=f"relevance that reaches a kernel's map from the logit, epsilon rule: {IMAGES} images",
    needs="labels",
    unit="logits",
    source="Bach et al., Pixel-wise Explanations by Layer-wise Relevance Propagation, PLoS ONE 10(7), 2015, eq. 58",
)
def score_lrp(task: RankingTask) -> KernelScores:
    """Root mean square over images of the summed relevance.

    With ReLU alone the epsilon rule is gradient times activation (Ancona et al., ICLR 2018, proposition 1): gAP against zero.
    """
    return _score(task, "lrp", "logits", rule="epsilon", epsilon=EPSILON, batch_norm="folded into the convolution")
