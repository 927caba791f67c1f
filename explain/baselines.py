"""Baseline rankers with the same interface: random, magnitude, BN scale, FPGM, Taylor, LAMP."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..common.errors import InputError
from ..common.files import sha256_json
from ..network.graph.trace import following_norms
from .gap.contributions import contributions
from .registry import register
from .scores import LayerScores, RankingTask


def kernels(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every convolution and linear layer with its kernels as rows, ``[C, weights per kernel]``, float64."""
    for name, child in module.named_modules():
        if isinstance(child, _ConvNd | nn.Linear):
            yield name, kernel_rows(child)


def kernel_rows(layer: _ConvNd | nn.Linear) -> Tensor:
    """The kernels of a layer as rows, ``[C, weights per kernel]``, float64, in the order of its output channels."""
    weight = layer.weight.detach().double()
    if isinstance(layer, _ConvTransposeNd):  # [C_in, C / groups, …]
        parts: Tensor = weight.reshape(layer.groups, -1, *weight.shape[1:])
        weight = parts.transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


@register(
    "random",
    summary="uniform random numbers, seeded",
    needs="weights",
    unit="none",
    source="the baseline of every comparison",
)
def score_random(task: RankingTask) -> LayerScores:
    """Depends on nothing of the network but its layer names and widths."""
    layers = {}
    for name, weight in kernels(task.network.module):
        seed = int(sha256_json([task.seed, name])[:12], 16)
        layers[name] = torch.rand(len(weight), generator=torch.Generator().manual_seed(seed))
    return LayerScores(layers, details={"seed": task.seed})


@register(
    "magnitude",
    summary="L1 norm of a kernel's weights",
    needs="weights",
    unit="sum of |weight|",
    source="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017",
)
def score_magnitude(task: RankingTask) -> LayerScores:
    """``sum |w|`` of each kernel."""
    layers = {name: weight.abs().sum(1).float() for name, weight in kernels(task.network.module)}
    return LayerScores(layers)


@register(
    "bn-scale",
    summary="|gamma| of the BatchNorm that follows a kernel",
    needs="weights",
    unit="|gamma|",
    source="Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017",
)
def score_bn_scale(task: RankingTask) -> LayerScores:
    """Absolute BatchNorm scales; layers without a following BatchNorm get no score.

    Raises:
        InputError: no layer has a BatchNorm.
    """
    followers = following_norms(task.network.module, task.network.example())
    layers = {
        layer: norm.weight.detach().abs().float() for layer, (_, norm) in followers.items() if norm.weight is not None
    }
    if not layers:
        raise InputError(
            "bn-scale needs convolutions followed by BatchNorm; this network has none. Use another ranker."
        )
    return LayerScores(layers)


@register(
    "fpgm",
    summary="summed distance of a kernel to all others of its layer; kernels near the geometric median score lowest",
    needs="weights",
    unit="sum of Euclidean distances",
    source="He et al., Filter Pruning via Geometric Median, CVPR 2019",
)
def score_fpgm(task: RankingTask) -> LayerScores:
    """``sum_j ||w_i - w_j||_2`` within each layer (their eq. 8)."""
    layers = {name: torch.cdist(weight, weight).sum(1).float() for name, weight in kernels(task.network.module)}
    return LayerScores(layers)


@register(
    "lamp",
    summary="a kernel's squared norm over the sum for all kernels of its layer with at least its norm",
    needs="weights",
    unit="ratio in (0, 1]",
    source="Lee et al., Layer-Adaptive Sparsity for Magnitude-based Pruning, ICLR 2021, by kernel instead of weight",
)
def score_lamp(task: RankingTask) -> LayerScores:
    """``||w_i||^2 / sum of ||w_j||^2 over j with ||w_j|| >= ||w_i||`` (their eq. 3, ties in index order)."""
    layers = {}
    for name, weight in kernels(task.network.module):
        squares = weight.square().sum(1)
        order = squares.argsort(stable=True)
        tails = squares[order].flip(0).cumsum(0).flip(0)
        scores = torch.empty_like(squares)
        scores[order] = squares[order] / tails.clamp(min=torch.finfo(torch.float64).tiny)
        layers[name] = scores.float()
    return LayerScores(layers)


@register(
    "taylor",
    summary="squared first-order effect on the loss of removing a kernel, after its BatchNorm and activation",
    needs="labels",
    unit="nats^2",
    source="Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, eq. 8 on a gate",
)
def score_taylor(task: RankingTask) -> LayerScores:
    """Mean over images of ``(sum over positions of dL/dF * F)^2``: a gate after the kernel's own BatchNorm and activation."""
    found = contributions(
        task.network,
        task.images,
        objective=lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
        batch_size=task.batch_size,
        device=task.device,
        progress=task.progress,
    )
    layers = {name: part.alpha(summed=True).square().mean(0) for name, part in found.layers.items()}
    return LayerScores(layers, details={"images": len(task.images)})
