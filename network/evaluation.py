"""Accuracy, cross-entropy and KL divergence of a classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .images.images import Images


@dataclass(frozen=True)
class Evaluation:
    """A classifier's ``accuracy`` in [0, 1] and mean cross-entropy ``loss`` in nats over ``images`` labelled images."""

    accuracy: float
    loss: float
    images: int


def predict(
    logits_of: Callable[[Tensor], Any],
    images: Images,
    batch_size: int = 256,
    device: str = "cpu",
    pick: Callable[[Any], Tensor] = lambda output: output,
) -> Tensor:
    """Class scores ``[n, classes]`` of all images, on the CPU, in their order.

    Args:
        pick: takes the class scores from what ``logits_of`` returns.
    """
    parts = []
    with torch.no_grad():
        for batch, _ in images.batches(batch_size):
            parts.append(pick(logits_of(batch.to(device))).float().cpu())
    return torch.cat(parts)


def evaluate(
    logits_of: Callable[[Tensor], Tensor], images: Images, batch_size: int = 256, device: str = "cpu"
) -> Evaluation:
    """Evaluate a classifier on labelled images."""
    logits = predict(logits_of, images, batch_size, device)
    accuracy = float((logits.argmax(1) == images.labels).double().mean())
    return Evaluation(accuracy, float(F.cross_entropy(logits, images.labels)), len(images))


def divergence(logits: Tensor, reference: Tensor) -> float:
    """Mean KL divergence KL(reference || logits) in nats between two sets of class scores ``[n, classes]``."""
    return float(F.kl_div(logits.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="batchmean"))
