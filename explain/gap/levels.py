"""How a decision is decomposed, and the result: levels of evidence from the decision down to the earliest layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...network.graph.feature_points import FeaturePoint
from .near_duplicates import Selection


@dataclass(frozen=True)
class DecompositionSettings:
    """How a decision is decomposed.

    ``layers``: the layers or blocks of the chain; the last layer of every stage of the network if None. ``selection``: the
    kernels kept for each decision. ``most``: how many decisions are kept per image and layer, by importance; all if None.
    ``averages``: mean activation of each point's kernels, ``[C]`` by name; if given, contributions are ``G * (F - E F)``
    instead of the paper's ``G * F``. ``between``: also compute the importance of all convolution and linear layers, with
    ``layer_averages`` as their mean activations.

    Raises:
        ValueError: ``most`` is below 1.
    """

    layers: tuple[str, ...] | None = None
    selection: Selection = field(default_factory=Selection)
    most: int | None = None
    averages: Mapping[str, Tensor] = field(default_factory=dict)
    layer_averages: Mapping[str, Tensor] = field(default_factory=dict)
    between: bool = False

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise ValueError(f"most must be at least 1 (got {self.most})")


@dataclass(frozen=True)
class Level:
    """The evidence found at one point of the chain, one kernel per row.

    ``image``, ``parent`` (the row of the level above that it supports; at the first level the image), ``kernel``, ``row`` and
    ``column`` (the strongest place, eq. 5) are int64 ``[rows]``. ``value`` is F at that place; ``alpha`` the contribution to
    the decision above (eq. 4), in that decision's unit per place; ``share`` is ``alpha`` divided by the sum of ``|alpha|`` over
    all kernels of the layer; ``importance`` the product of the shares from the root down. ``maps`` are the activation maps A
    (eq. 3), ``[rows, H, W]``; ``merged`` lists the kernels left out as near-duplicates of each row's kernel.
    """

    point: FeaturePoint
    image: Tensor
    parent: Tensor
    kernel: Tensor
    row: Tensor
    column: Tensor
    value: Tensor
    alpha: Tensor
    share: Tensor
    importance: Tensor
    maps: Tensor
    merged: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.image)

    def kept(self, images: int) -> Tensor:
        """How often each kernel was kept, int64 ``[images, C]``."""
        counts = torch.zeros(images, self.point.channels, dtype=torch.int64)
        return counts.index_put_((self.image, self.kernel), torch.ones(len(self), dtype=torch.int64), accumulate=True)

    def cpu(self) -> "Level":
        """The same with all tensors on the CPU."""
        moved: dict[str, Any] = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Decomposition:
    """A batch of decomposed decisions, from the last layer of the chain to the first.

    ``decision`` is the decision's value for each image, ``[images]``. ``importance`` maps every point to the importance of
    all its kernels, ``[images, C]``: ``I_k = sum_k' I_k' share_k|k'`` over the decisions kept above; ``layer_importance`` is
    the same for convolution and linear layers, if asked for. ``saliency`` is the sum of the lowest decisions' gradients with
    respect to the image, weighted by their importance, ``[images, C, H, W]``.
    """

    decision: Tensor
    levels: tuple[Level, ...]
    importance: Mapping[str, Tensor]
    layer_importance: Mapping[str, Tensor]
    saliency: Tensor
