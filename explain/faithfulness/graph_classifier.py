"""Classify an image's attribution graph (At-GC) from frozen embeddings, to test whether the graph contains the class.

Part of the reconstruction of AGIC (Zheng et al., Neural Networks 179, 2024) from its abstract.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.errors import InputError, UsageError
from ...common.progress import Progress, silent
from ..agic.encoder import NEARLY_CONSTANT, Embeddings

READOUTS = ("mean", "kernels")
KINDS = ("kernel", "join", "class")
AT_ONCE = 256  # graphs per batch without gradients


class Readout(nn.Module):
    """Pools each layer's nodes into one vector, and concatenates the layers.

    ``mean``: ``z_l = (1/n_l) sum_v (h_v - hbar_v)``. ``kernels`` distinguishes kernels:
    ``z_l = (1/n_l) sum_v g_v * (h_v - hbar_v)`` with a learned gain vector per kernel, initially 1. ``hbar_v`` is the node's
    mean embedding over the training graphs; subtracting it removes a part that does not depend on the image. Then each
    number is divided by its standard deviation over the training graphs (at gain 1; constant ones stay 0).
    """

    typical: Tensor
    factors: Tensor
    kept: Tensor

    def __init__(self, embeddings: Embeddings, name: str, kinds: Collection[str] = KINDS) -> None:
        super().__init__()
        self.names = tuple(layer for layer in embeddings.nodes if embeddings.kinds[layer] in kinds)
        if not self.names:
            raise InputError(f"The graphs have no nodes of kind {' or '.join(kinds)}, so there is nothing to read.")
        self.sizes = [embeddings.nodes[layer] for layer in self.names]
        kept = [embeddings.kinds[layer] in kinds for layer in embeddings.nodes]
        counts = torch.tensor(list(embeddings.nodes.values()))
        self.register_buffer("kept", torch.tensor(kept).repeat_interleave(counts).nonzero().flatten())
        width = embeddings.values.shape[2]
        shape = (len(self.kept), width)
        self.gains = nn.Parameter(torch.ones(shape)) if name == "kernels" else None
        self.register_buffer("typical", torch.zeros(shape))
        self.register_buffer("factors", torch.ones(len(self.names) * width))
        batches = list(embeddings.batches(AT_ONCE))
        with torch.no_grad():
            self.typical += torch.stack([self.take(embeddings, rows).sum(0) for rows in batches]).sum(0) / len(
                embeddings
            )
            squares = [self(self.take(embeddings, rows)).square().sum(0) for rows in batches]
            spread = (torch.stack(squares).sum(0) / len(embeddings)).sqrt()
            self.factors = torch.where(spread > NEARLY_CONSTANT * self.typical.abs().max(), 1 / spread, 0)

    def take(self, embeddings: Embeddings, rows: Tensor) -> Tensor:
        """The nodes read of some graphs, float32 ``[graphs, nodes read, width]``, on the readout's device."""
        return embeddings.values[rows][:, self.kept.cpu()].float().to(self.kept.device)

    def forward(self, values: Tensor, keep: Tensor | None = None) -> Tensor:
        """``[graphs, nodes read, width]`` to ``[graphs, layers * width]``.

        With ``keep``, ``a_v`` of shape ``[graphs, nodes read]``, every node is replaced by ``a_v h_v + (1 - a_v) hbar_v``.
        """
        apart = values - self.typical
        if keep is not None:
            apart = apart * keep.unsqueeze(2)
        if self.gains is not None:
            apart = apart * self.gains
        return torch.stack([part.mean(1) for part in torch.split(apart, self.sizes, 1)], 1).flatten(1) * self.factors


@dataclass(frozen=True)
class ClassifierSettings:
    """The readout (``mean`` or ``kernels``), the hidden units after it, and their training (AdamW).

    Raises:
        UsageError: a value is out of range.
    """

    readout: str = "mean"
    hidden: int = 64
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    dropout: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_training(self.readout, self.learning_rate, self.weight_decay, self.dropout)
        for name, least in (("hidden", 1), ("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(
                    f"{name} of the graph classifier must be at least {least} (got {getattr(self, name)})."
                )


def check_training(readout: str, learning_rate: float, weight_decay: float, dropout: float) -> None:
    """Check the settings that classifier and scoring have in common.

    Raises:
        UsageError: a value is out of range.
    """
    if readout not in READOUTS:
        raise UsageError(f"readout must be one of {', '.join(READOUTS)} (got {readout!r}).")
    if not 0 < learning_rate < math.inf:
        raise UsageError(f"learning_rate must be above 0 (got {learning_rate}).")
    if not 0 <= weight_decay < math.inf:
        raise UsageError(f"weight_decay must not be negative (got {weight_decay}).")
    if not 0 <= dropout < 1:
        raise UsageError(f"dropout must be at least 0 and below 1 (got {dropout}).")


def class_head(inputs: int, hidden: int, classes: int, dropout: float) -> nn.Sequential:
    """The perceptron from a readout to class scores."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes))


class GraphClassifier(nn.Module):
    """A readout and a perceptron with one hidden layer, on frozen embeddings."""

    def __init__(self, embeddings: Embeddings, classes: int, settings: ClassifierSettings) -> None:
        super().__init__()
        self.readout = Readout(embeddings, settings.readout)
        self.head = class_head(len(self.readout.factors), settings.hidden, classes, settings.dropout)

    def forward(self, values: Tensor) -> Tensor:
        scores: Tensor = self.head(self.readout(values))
        return scores

    @torch.no_grad()
    def predict(self, embeddings: Embeddings) -> Tensor:
        """Class scores before the softmax, float32 ``[graphs, classes]``, on the CPU."""
        self.eval()
        return torch.cat([self(self.readout.take(embeddings, rows)).cpu() for rows in embeddings.batches(AT_ONCE)])


def train_classifier(
    embeddings: Embeddings,
    targets: Tensor,
    settings: ClassifierSettings | None = None,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> GraphClassifier:
    """Train a classifier of ``targets``, int64 ``[graphs]``, by cross-entropy; it has the network's classes. Seeded.

    Raises:
        InputError: there is not one target per graph.
    """
    settings = settings or ClassifierSettings()
    if len(targets) != len(embeddings):
        raise InputError(f"There are {len(targets)} targets for {len(embeddings)} graphs. Give one for each graph.")
    classes = max(embeddings.outputs.shape[1], int(targets.max()) + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        classifier = GraphClassifier(embeddings, classes, settings).to(device).train()
        optimizer = torch.optim.AdamW(
            classifier.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        for epoch in range(settings.epochs):
            for rows in torch.split(torch.randperm(len(embeddings)), settings.batch_size):
                scores = classifier(classifier.readout.take(embeddings, rows))
                loss = F.cross_entropy(scores, targets[rows].to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            progress(epoch + 1, settings.epochs)
    return classifier.eval()
