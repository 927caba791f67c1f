"""Attributions of class logits to kernels, by the methods of captum.

captum runs on a traced copy of the network in which every call is a separate module (``graph_views.py``), at the points where
the next layers read a convolution's or linear layer's output, after its own normalisation and activation. The attributed
output is the logit of the image's class. As for gAP, an image's attribution ``A[k]`` to a kernel's map is reduced to one signed
number, here the sum over positions. For a layer on every path, the attributions of its kernels then sum to the logit or to its
change from the baseline (except for internal influence). gAP's alpha times H*W is the same quantity.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.progress import Progress, silent
from ...network.images.images import Images
from ...network.network import Network
from ..gap.contributions import STATISTICS, class_means
from .deep_lift import prepare_deep_lift
from .graph_views import Attribute, CaptumView, make_view
from .lrp import prepare_lrp
from .path_methods import prepare_conductance, prepare_integrated_gradients, prepare_internal_influence

BASELINE = "zero image after normalisation"


@dataclass(frozen=True)
class Attributions:
    """Attributions of the class logits to kernels: ``layers`` maps a layer's name to signed sums over positions, ``[images,
    C]``.

    A layer that is called several times sums over its calls; one that does not affect the logits has zeros.
    """

    layers: Mapping[str, Tensor]
    labels: Tensor
    classes: int

    def root_mean_square(self) -> dict[str, Tensor]:
        """Root mean square over images, ``[C]`` by layer."""
        return {layer: STATISTICS["root_mean_square"](values) for layer, values in self.layers.items()}

    def per_class(self) -> dict[str, Tensor]:
        """Signed means over each class's images, ``[classes, C]`` by layer; zero for a class without images."""
        return {layer: class_means(values, self.labels, self.classes) for layer, values in self.layers.items()}


@dataclass(frozen=True)
class Method:
    """How captum is run: ``prepare`` takes a view and the number of rows per pass, and returns the function for a batch of
    images.

    ``rows`` is the number of rows per image in a pass: the image itself, its baseline, or the steps of its path.
    """

    name: str
    rows: int
    prepare: Callable[[CaptumView, int], Attribute]


METHODS = {
    method.name: method
    for method in (
        Method("conductance", 8, prepare_conductance),
        Method("internal-influence", 8, prepare_internal_influence),
        Method("integrated-gradients", 8, prepare_integrated_gradients),
        Method("deep-lift", 2, prepare_deep_lift),
        Method("lrp", 1, prepare_lrp),
    )
}


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

    Methods with a baseline use an image of zeros after normalisation (the mean colour, if images are normalised by it).
    ``batch_size`` is the number of rows per pass, images times steps.

    Raises:
        InputError: the network's forward cannot be traced, or the method has no rule for something in it.
    """
    chosen = METHODS[method]
    view = make_view(network, device)
    names = view.names
    collected: dict[str, list[Tensor]] = {layer: [] for layer in view.points}
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum warns about the hooks that it sets and removes
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
