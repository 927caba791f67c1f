"""Rankers by captum's attributions: conductance, internal influence, integrated gradients, DeepLIFT, LRP.

The score is the root mean square over images of a kernel's attribution, as for gAP, because signed means cancel between
images; within a layer the two differ only by the method and the constant H*W.
"""

from importlib.metadata import version
from typing import Any

from ..registry import register
from ..scores import LayerScores, RankingTask
from .attributions import BASELINE, attribute
from .lrp import EPSILON
from .path_methods import STEPS, STEPS_BY_LAYER

IMAGES = 128
"""The most images, a seeded stratified sample, since path methods run the network at every step for each image."""


def _score(task: RankingTask, method: str, **details: Any) -> LayerScores:
    images = task.images.sample(IMAGES, task.seed)
    found = attribute(
        task.network, images, method, batch_size=task.batch_size, device=task.device, progress=task.progress
    )
    about = {"images": len(images), "statistic": "root_mean_square", "captum": version("captum"), **details}
    return LayerScores(found.root_mean_square(), found.per_class(), about)


@register(
    "conductance",
    summary=f"change of the logit from a zero image that flows through a kernel: {IMAGES} images, {STEPS} steps",
    needs="labels",
    unit="logits",
    source="Dhamdhere et al., How Important Is a Neuron?, ICLR 2019, eq. 3; Shrikumar et al. 2018",
)
def score_conductance(task: RankingTask) -> LayerScores:
    """Root mean square over images of the summed conductance; over a layer on every path it sums to F(x) - F(0)."""
    return _score(task, "conductance", steps=STEPS, baseline=BASELINE)


@register(
    "internal-influence",
    summary=f"mean gradient of the logit by a kernel's map from a zero image: {IMAGES} images, {STEPS} steps",
    needs="labels",
    unit="logits per unit of activation",
    source="Leino et al., Influence-Directed Explanations for Deep Convolutional Networks, ITC 2018, def. 1",
)
def score_internal_influence(task: RankingTask) -> LayerScores:
    """Root mean square over images of the influence summed over positions. It ignores how strong the kernel's activation is."""
    return _score(task, "internal-influence", steps=STEPS, baseline=BASELINE)


@register(
    "integrated-gradients",
    summary=f"integrated gradients from a layer's output for a zero image to its own: {IMAGES} images, {STEPS_BY_LAYER} steps",
    needs="labels",
    unit="logits",
    source="Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017, eq. 1, on a layer's output",
)
def score_integrated_gradients(task: RankingTask) -> LayerScores:
    """Root mean square over images of the integral along the line between a layer's two outputs, layer by layer."""
    return _score(task, "integrated-gradients", steps=STEPS_BY_LAYER, baseline=BASELINE)


@register(
    "deep-lift",
    summary=f"DeepLIFT contributions of a kernel's map relative to its map for a zero image, rescale rule: {IMAGES} images",
    needs="labels",
    unit="logits",
    source="Shrikumar et al., Learning Important Features Through Propagating Activation Differences, ICML 2017, section 3.5.1",
)
def score_deep_lift(task: RankingTask) -> LayerScores:
    """Root mean square over images of multiplier times difference; over a layer on every path it sums to F(x) - F(0)."""
    return _score(task, "deep-lift", baseline=BASELINE)


@register(
    "lrp",
    summary=f"relevance that reaches a kernel's map from the logit, epsilon rule: {IMAGES} images",
    needs="labels",
    unit="logits",
    source="Bach et al., Pixel-wise Explanations by Layer-wise Relevance Propagation, PLoS ONE 10(7), 2015, eq. 58",
)
def score_lrp(task: RankingTask) -> LayerScores:
    """Root mean square over images of the summed relevance.

    With ReLU alone the epsilon rule is gradient times activation (Ancona et al., ICLR 2018, proposition 1): gAP against zero.
    """
    return _score(task, "lrp", rule="epsilon", epsilon=EPSILON, batch_norm="folded into the convolution")
