"""Settings of the rankings, of AGIC and PICNN, and of the evidence page."""

import math
from dataclasses import dataclass

from ..common.checks import check_one_of, check_positive, check_whole
from ..common.errors import UsageError


@dataclass(frozen=True)
class RankingSettings:
    """The ranker, by its registered name (``secateur rankers``)."""

    rank_by: str = "gap"


@dataclass(frozen=True)
class AgicSettings:
    """The work that ``--rank-by agic`` may do: calibration images that become graphs, training steps of the graph encoder and
    of the scores; the incoming edges that a node keeps, and the images that stand in for kernels left out. ``permutations`` of
    kernels by which Shapley values without a closed form (behind GroupNorm, LayerNorm, attention) are estimated, at a price: 0
    leaves those links out."""

    images: int = 1000
    encoder_steps: int = 300
    scoring_steps: int = 480
    edges: int = 16
    background: int = 32
    permutations: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "scoring_steps", "edges", "background"):
            check_whole(f"agic {name}", getattr(self, name), 1)
        for name in ("encoder_steps", "permutations"):
            check_whole(f"agic {name}", getattr(self, name), 0)


@dataclass(frozen=True)
class PicnnSettings:
    """PICNN's pathway (Guo et al., AAAI 2024): its target layer, how filters are assigned to classes, and how both are trained.

    Where the paper and its published code differ the defaults are the paper's; the code's choices are ``loss_over = "right"``
    (only images whose pseudo-label is right), ``complement = "drawn"`` (ACC3 by masks of their own draw instead of ACC2's
    opposite) and ``initial = "softmax"`` (P's parameters are a softmax already).

    ``target``: a layer or block; the last map in front of the head if None. ``filters`` or ``filters_per_class`` put a new
    layer of that many filters behind it (the code has 64, the paper 12.8 a class). ``masks``: bernoulli (PICNN), gumbel, csg
    or std (P is not learned). ``weight`` is lambda. ``labels = "true"`` takes the cluster of the label, which leaks it
    (figure 4). ``membership_rate``: the learning rate of P over that of the rest. ``post_hoc_steps`` and ``post_hoc_rate``
    (Adam) learn P alone. ``draws``: masks drawn an image for ACC2 and ACC3. ``mis_images``: at most so many for MIS.
    ``epochs``, ``learning_rate``, ``final_learning_rate``, ``weight_decay`` and ``flip`` are for ``train-picnn`` alone: a
    ranking learns only P, and ``--pathway picnn`` trains by ``[recovery]``.
    """

    target: str | None = None
    filters: int | None = None
    filters_per_class: float | None = None
    masks: str = "bernoulli"
    weight: float = 2.0
    labels: str = "pseudo"
    loss_over: str = "all"
    complement: str = "opposite"
    initial: str = "normal"
    gate_penalty: float = 0.1
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    weight_decay: float = 1e-4
    membership_rate: float = 100.0
    flip: bool | None = None
    post_hoc_steps: int = 500
    post_hoc_rate: float = 0.05
    draws: int = 5
    mis_images: int = 2000

    def __post_init__(self) -> None:
        if self.filters is not None and self.filters_per_class is not None:
            raise UsageError("filters and filters_per_class both say how wide the new layer is; give one.")
        if self.filters is not None:
            check_whole("picnn filters", self.filters, 2)
        check_one_of("picnn masks", self.masks, ("bernoulli", "gumbel", "csg", "std"))
        check_one_of("picnn labels", self.labels, ("pseudo", "true"))
        check_one_of("picnn loss_over", self.loss_over, ("all", "right"))
        check_one_of("picnn complement", self.complement, ("opposite", "drawn"))
        check_one_of("picnn initial", self.initial, ("normal", "softmax"))
        for name in ("epochs", "post_hoc_steps"):
            check_whole(f"picnn {name}", getattr(self, name), 0)
        check_whole("picnn batch_size", self.batch_size, 2)
        for name in ("draws", "mis_images"):
            check_whole(f"picnn {name}", getattr(self, name), 1)
        for name in ("learning_rate", "final_learning_rate", "membership_rate", "post_hoc_rate", "filters_per_class"):
            check_positive(f"picnn {name}", getattr(self, name))
        for name in ("weight", "weight_decay", "gate_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"picnn {name} must not be negative (got {getattr(self, name)}).")


@dataclass(frozen=True)
class EvidencePageSettings:
    """The page on kernels and images. ``page``: whether it is written. ``evidence_images`` validation images are explained on
    it, and ``misclassified`` of those that the network gets wrong. ``evidence_kernels`` of each layer are shown with patches;
    None: as many as keep the page below 20 MB."""

    page: bool = True
    evidence_images: int = 10
    misclassified: int = 0
    evidence_kernels: int | None = None

    def __post_init__(self) -> None:
        for name in ("evidence_images", "misclassified"):
            check_whole(name, getattr(self, name), 0)
        if self.evidence_kernels is not None:
            check_whole("evidence_kernels", self.evidence_kernels, 1)
