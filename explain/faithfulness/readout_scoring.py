"""Scoring aggregation by a readout: which kernels' embeddings are needed to reproduce the network's output.

Part of the reconstruction of AGIC (Zheng et al., Neural Networks 179, 2024) from its abstract; the method is secateur's.
A score for every kernel and image decides which share ``r`` of a layer's kernels is kept; a kernel that is not kept is
replaced by its average, so that neither the scale of the mask nor an empty selection carries information.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.errors import InputError, UsageError
from ...common.progress import Progress, silent
from ..agic.encoder import NEARLY_CONSTANT, Embeddings
from ..agic.keep_masks import KEEP_RATES, LEAST_KEPT, MOST_KEPT, keep_masks
from .graph_classifier import KINDS, Readout, check_training, class_head

TARGETS = ("output", "label")


@dataclass(frozen=True)
class ScoringSettings:
    """Settings of the training of scores (AdamW).

    ``target``: what the kept kernels must predict, the network's own class probabilities (``output``, by Kullback-Leibler
    divergence) or the image's class (``label``, by cross-entropy). ``readout`` as for the classifier. ``offsets``: add a
    learned score per kernel to the shared perceptron. ``all_nodes``: joins and classes are read too, unmasked; they are never
    scored. ``temperature`` is that of the mask; ``score_hidden`` and ``hidden`` are the hidden units after the embeddings and
    after the readout.

    Raises:
        UsageError: a value is out of range.
    """

    target: str = "output"
    readout: str = "mean"
    offsets: bool = False
    all_nodes: bool = False
    temperature: float = 0.5
    score_hidden: int = 32
    hidden: int = 64
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_training(self.readout, self.learning_rate, self.weight_decay, self.dropout)
        if self.target not in TARGETS:
            raise UsageError(f"target must be one of {', '.join(TARGETS)} (got {self.target!r}).")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"temperature must be above 0 (got {self.temperature}).")
        for name, least in (("score_hidden", 1), ("hidden", 1), ("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} of scoring must be at least {least} (got {getattr(self, name)}).")


class ScoringNetwork(nn.Module):
    """Scores ``s_v = MLP(h_v)``, their masks, and the readout through the masks.

    All kernels share the perceptron; its inputs are embeddings standardised over all kernels and training graphs.
    """

    center: Tensor
    factor: Tensor
    scored: Tensor

    def __init__(self, embeddings: Embeddings, classes: int, settings: ScoringSettings) -> None:
        super().__init__()
        self.settings = settings
        self.readout = Readout(embeddings, settings.readout, KINDS if settings.all_nodes else ("kernel",))
        self.names = tuple(name for name in self.readout.names if embeddings.kinds[name] == "kernel")
        if not self.names:
            raise InputError("The graphs have no nodes of kind kernel, so there is nothing to score.")
        self.sizes = [embeddings.nodes[name] for name in self.names]
        counts = torch.tensor(self.readout.sizes)
        is_kernel = torch.tensor([name in self.names for name in self.readout.names]).repeat_interleave(counts)
        self.register_buffer("scored", is_kernel.nonzero().flatten())
        width = embeddings.values.shape[2]
        center, spread = _spread(embeddings, self.readout, self.scored)
        self.register_buffer("center", center)
        self.register_buffer("factor", torch.where(spread > NEARLY_CONSTANT * center.abs().max(), 1 / spread, 0))
        self.score = nn.Sequential(
            nn.Linear(width, settings.score_hidden), nn.ReLU(), nn.Linear(settings.score_hidden, 1)
        )
        self.offsets = nn.Parameter(torch.zeros(len(self.scored))) if settings.offsets else None
        # The rate is an input of the head. Otherwise fewer kernels would mean less confidence, and to be as confident as the
        # network at every rate, the scores would drop kernels that it needs.
        self.head = class_head(len(self.readout.factors) + 1, settings.hidden, classes, settings.dropout)

    def masks(self, values: Tensor, rates: Tensor) -> Tensor:
        """``a_v(r)`` of the kernels, ``[graphs, kernels]``, from the nodes read ``[graphs, nodes read, width]``."""
        scores = self.score((values[:, self.scored] - self.center) * self.factor).squeeze(2)
        if self.offsets is not None:
            scores = scores + self.offsets
        return keep_masks(scores, rates, self.sizes, self.settings.temperature)

    def forward(self, values: Tensor, rates: Tensor) -> Tensor:
        """Class scores ``[graphs, classes]`` read through the masks at keep rates ``[graphs]``."""
        kept = self.masks(values, rates)
        keep = torch.ones_like(values[:, :, 0]).index_copy(1, self.scored, kept)
        read = self.readout(values, keep)
        predicted: Tensor = self.head(torch.cat([read, torch.logit(rates).unsqueeze(1)], 1))
        return predicted


def _spread(embeddings: Embeddings, readout: Readout, scored: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of the kernels' embeddings over kernels and graphs, both ``[width]``."""
    center = readout.typical[scored].mean(0)
    squares = [
        (readout.take(embeddings, rows)[:, scored] - center).square().mean((0, 1)) * len(rows)
        for rows in embeddings.batches(64)
    ]
    return center, (torch.stack(squares).sum(0) / len(embeddings)).sqrt()


def train_scoring(
    embeddings: Embeddings,
    settings: ScoringSettings | None = None,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> ScoringNetwork:
    """Learn which kernels predict the target best when only a share of them is kept.

    The share is drawn for each graph and step, uniformly from 0.1 to 0.9. The result is reproducible on the CPU of one machine.

    Raises:
        InputError: the graphs have no nodes of kind kernel.
    """
    settings = settings or ScoringSettings()
    classes = embeddings.outputs.shape[1]
    if settings.target == "label":
        wanted = F.one_hot(embeddings.labels, max(classes, int(embeddings.labels.max()) + 1)).float()
    else:
        wanted = embeddings.outputs.float().softmax(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = ScoringNetwork(embeddings, wanted.shape[1], settings).to(device).train()
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        for epoch in range(settings.epochs):
            for rows in torch.split(torch.randperm(len(embeddings)), settings.batch_size):
                rates = torch.empty(len(rows)).uniform_(LEAST_KEPT, MOST_KEPT).to(device)
                predicted = network(network.readout.take(embeddings, rows), rates).log_softmax(1)
                # for a one-hot target this divergence is the cross-entropy
                loss = F.kl_div(predicted, wanted[rows].to(device), reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            progress(epoch + 1, settings.epochs)
    return network.eval()


@torch.no_grad()
def kernel_scores(
    network: ScoringNetwork, embeddings: Embeddings, *, rates: Sequence[float] = KEEP_RATES
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The score of each kernel: the mean of ``a_v(r)`` over graphs and keep rates, in (0, 1).

    Returns:
        For each layer float32 ``[C]``, and the same over each class's graphs, ``[classes, C]`` (zero for a class without
            graphs).
    """
    classes = max(embeddings.outputs.shape[1], int(embeddings.labels.max()) + 1)
    sums = torch.zeros(classes, sum(network.sizes))
    for rows in embeddings.batches(network.settings.batch_size):
        values = network.readout.take(embeddings, rows)
        kept = torch.stack([network.masks(values, values.new_full((len(rows),), rate)) for rate in rates]).mean(0)
        sums.index_add_(0, embeddings.labels[rows], kept.cpu())
    counts = torch.bincount(embeddings.labels, minlength=classes)
    means, per_class = sums.sum(0) / len(embeddings), sums / counts.clamp(min=1).unsqueeze(1)
    layers = dict(zip(network.names, torch.split(means, network.sizes), strict=True))
    return layers, dict(zip(network.names, torch.split(per_class, network.sizes, 1), strict=True))
