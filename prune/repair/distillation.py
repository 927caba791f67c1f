"""Distillation without labels: short training towards the original's class scores."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.progress import Progress, silent
from ...network.graph.pass_through import holding_zeros
from ...network.hooks import frozen, pick_logits
from ...network.images.images import Images
from ...network.network import Network
from ...network.training import TrainingSettings, train

STEPS, BATCH_SIZE, LEARNING_RATE, TEMPERATURE = 500, 64, 5e-4, 2.0


def distill(
    original: Network,
    pruned: nn.Module,
    images: Images,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> None:
    """Train ``pruned`` in place towards the original's softened outputs, with about ``STEPS`` steps of Adam and no labels.

    The weights after the last step are kept. Whether they are better must be measured on images that were not trained on.
    """
    teacher = original.copy().module.to(device)

    def loss(logits: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = (pick_logits(teacher(batch)) / TEMPERATURE).log_softmax(1)
        softened = (logits / TEMPERATURE).log_softmax(1)
        return TEMPERATURE**2 * F.kl_div(softened, wanted, log_target=True, reduction="batchmean")

    batch = min(BATCH_SIZE, len(images))
    epochs = max(1, round(STEPS / max(1, len(images) // batch)))
    settings = TrainingSettings(
        epochs, batch, LEARNING_RATE, 0.0, original.input_shape[0] == 3, seed, device, optimizer="adam"
    )
    with frozen(teacher), holding_zeros(pruned, original.example(1)):
        train(pruned.to(device), images, loss, None, settings, progress)
