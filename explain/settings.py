"""Settings of the rankings, of AGIC and PICNN, and of the evidence page."""

import math
from dataclasses import dataclass

from ..common.checks import check_one_of, check_positive, check_whole
from ..common.errors import UsageError
from ..common.settings import setting


@dataclass(frozen=True)
class RankingSettings:
    """The ranker, by its registered name (``secateur rankers``)."""

    rank_by: str = setting("gap", "The ranker, or several; `secateur rankers` lists them.")


@dataclass(frozen=True)
class AgicSettings:
    """Settings of ``--rank-by agic``.

    Calibration images that become graphs, training steps of the graph encoder and of the scores, incoming edges kept per node,
    and background images that replace kernels left out of a coalition. ``permutations`` is the number of permutations to
    estimate Shapley values without a closed form (after GroupNorm, LayerNorm, attention), which is slow; 0 leaves those links
    out."""

    images: int = setting(1000, "Calibration images to build graphs from.")
    encoder_steps: int = setting(300, "Training steps of the graph encoder.")
    scoring_steps: int = setting(480, "Training steps of the scores.")
    edges: int = setting(16, "Strongest incoming edges to keep per node.")
    background: int = setting(32, "Background images of the Shapley values.")
    permutations: int = setting(0, "Permutations for Shapley values without a closed form; 0 leaves those links out.")

    def __post_init__(self) -> None:
        for name in ("images", "scoring_steps", "edges", "background"):
            check_whole(f"agic {name}", getattr(self, name), 1)
        for name in ("encoder_steps", "permutations"):
            check_whole(f"agic {name}", getattr(self, name), 0)


@dataclass(frozen=True)
class PicnnSettings:
    """PICNN's pathway (Guo et al., AAAI 2024): its target layer, how filters are assigned to classes, and how both are trained.

    Where the paper and its published code differ, the defaults are the paper's. The code's choices are ``loss_over = "right"``
    (only images whose pseudo-label is correct), ``complement = "drawn"`` (ACC3 with separately drawn masks instead of the
    complement of ACC2's) and ``initial = "softmax"`` (P's parameters are already a softmax).

    ``target``: a layer or block; the last map before the head if None. ``filters`` or ``filters_per_class`` insert a new
    layer of that many filters after it (64 in the code, 12.8 per class in the paper). ``masks``: bernoulli (PICNN), gumbel,
    csg or std (P is not learned). ``weight`` is lambda. ``labels = "true"`` uses the cluster of the label, which leaks it
    (figure 4). ``membership_rate``: the learning rate of P over that of the network. ``post_hoc_steps`` and ``post_hoc_rate``
    (Adam) are for learning P alone. ``draws``: masks per image for ACC2 and ACC3. ``mis_images``: the most images for MIS.
    ``epochs``, ``learning_rate``, ``final_learning_rate``, ``weight_decay`` and ``flip`` apply to ``train-picnn`` only: a
    ranking only learns P, and ``--pathway picnn`` trains by ``[recovery]``.
    """

    target: str | None = setting(None, "Layer or block whose filters are assigned to classes.")
    filters: int | None = setting(None, "Add a layer of this many filters behind the target (the published code: 64).")
    filters_per_class: float | None = setting(None, "The same as a multiple of the classes (the paper: 12.8).")
    masks: str = setting("bernoulli", "bernoulli (PICNN), gumbel, csg, or std (P is not learned).")
    weight: float = setting(2.0, "Weight of the interpretation loss, lambda in the paper.", flag="lambda")
    labels: str = setting(
        "pseudo", "The class whose cluster a training image uses: pseudo (sampled from the prediction) or true."
    )
    loss_over: str = setting(
        "all", "Images in the interpretation loss: all, or right (those with a correct pseudo-label)."
    )
    complement: str = setting("opposite", "Masks of ACC3: opposite (the complement of ACC2's) or drawn (separately).")
    initial: str = setting("normal", "Initialisation of P: normal or softmax.")
    gate_penalty: float = setting(0.1, "Weight of the penalty on open gates (csg).")
    epochs: int = setting(20, "Epochs of train-picnn.")
    batch_size: int = setting(128, "Batch size.")
    learning_rate: float = setting(1e-3, "Initial learning rate of Adam.")
    final_learning_rate: float = setting(1e-6, "Final learning rate of Adam.")
    weight_decay: float = setting(1e-4, "Weight decay; a higher one lowers ACC3 in short trainings.")
    membership_rate: float = setting(100.0, "Learning rate of P, relative to that of the network.")
    flip: bool | None = setting(
        None, "Flip images horizontally at random in train-picnn; by default only colour images."
    )
    post_hoc_steps: int = setting(500, "Training steps to learn P alone.")
    post_hoc_rate: float = setting(0.05, "Learning rate of these steps.")
    draws: int = setting(5, "Masks drawn for each image for ACC2 and ACC3.")
    mis_images: int = setting(2000, "The most images for the mutual information score.")

    def __post_init__(self) -> None:
        if self.filters is not None and self.filters_per_class is not None:
            raise UsageError("filters and filters_per_class both set the width of the new layer; give one of them.")
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
    """Settings of the evidence page.

    ``page``: whether it is written. It explains ``evidence_images`` validation images and ``misclassified`` misclassified ones.
    ``evidence_kernels`` per layer are shown with patches; None for as many as keep the page below 20 MB."""

    page: bool = setting(True, "Write evidence.html, a page on decisions and kernels.", flag="evidence")
    evidence_images: int = setting(10, "Validation images to explain in evidence.html.")
    misclassified: int = setting(0, "The most misclassified validation images to explain as well.")
    evidence_kernels: int | None = setting(
        None, "Kernels per layer to show with patches; by default as many as fit into 20 MB."
    )

    def __post_init__(self) -> None:
        for name in ("evidence_images", "misclassified"):
            check_whole(name, getattr(self, name), 0)
        if self.evidence_kernels is not None:
            check_whole("evidence_kernels", self.evidence_kernels, 1)
