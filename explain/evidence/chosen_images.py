"""The default choice of images to explain: a few of every class, and misclassified ones on request."""

from dataclasses import dataclass

import torch

from ...network.evaluation import predict
from ...network.hooks import pick_logits
from ...network.images.images import Images
from ...network.network import Network

LOOKED_AT = 1000


@dataclass(frozen=True)
class Choice:
    """Indices of the chosen images, correctly classified ones first, then misclassified ones, out of ``looked_at``."""

    right: tuple[int, ...]
    wrong: tuple[int, ...]
    looked_at: int


def choose_images(
    network: Network,
    images: Images,
    count: int,
    misclassified: int = 0,
    *,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "cpu",
) -> Choice:
    """``count`` correctly classified images, one class after another, and the ``misclassified`` most confident mistakes.

    They come from a seeded sample of ``LOOKED_AT`` images, or from all images if the sample has fewer mistakes than requested.
    With the network's own predictions as labels, there are no mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    module = network.copy().module.to(device)
    for part in (order[:LOOKED_AT], order):
        looked_at = images.subset(part)
        probabilities = predict(module, looked_at, batch_size, device, pick_logits).softmax(1)
        confidence, predicted = probabilities.max(1)
        correct = predicted == looked_at.labels
        if len(part) == len(order) or int((~correct).sum()) >= misclassified or not images.labelled:
            break
    turn: list[tuple[int, int, int]] = []  # the round, the class, the position in the order
    seen: dict[int, int] = {}
    for place in correct.nonzero().flatten().tolist():
        label = int(predicted[place])
        seen[label] = seen.get(label, 0) + 1
        turn.append((seen[label], label, place))
    right = sorted(turn)[:count]
    mistakes = (~correct).nonzero().flatten()
    mistakes = mistakes[confidence[mistakes].argsort(descending=True, stable=True)][:misclassified]
    return Choice(tuple(int(order[place]) for _, _, place in right), tuple(order[mistakes].tolist()), len(looked_at))
