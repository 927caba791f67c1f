"""Fine-tuning a pruned network with distillation from the original."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..network.cutting import followable
from ..network.evaluation import evaluate
from ..network.images import Splits
from ..network.model import Network
from ..network.probe import frozen, pick_logits
from ..network.training import History, TrainingSettings, train
from ..recipe import RecoverySettings


def recover(
    original: Network,
    pruned: Network,
    splits: Splits,
    settings: RecoverySettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Network, History]:
    """Fine-tune on the training split; the epoch that is best on validation is kept. Both networks given stay as they are.

    The loss is ``(1 - d) * cross-entropy + d * T^2 * KL(original || pruned)`` on softened class scores (Hinton et al.,
    Distilling the Knowledge in a Neural Network, 2015).
    """
    student = followable(pruned.module, pruned.example(1)).to(device)
    teacher = original.copy().module.to(device)
    flip = settings.flip if settings.flip is not None else original.input_shape[0] == 3
    temperature, share = settings.temperature, settings.distillation

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        value = (1 - share) * F.cross_entropy(logits, labels)
        if share > 0:
            with torch.no_grad():
                reference = pick_logits(teacher(images)) / temperature
            softened = (logits / temperature).log_softmax(1)
            divergence = F.kl_div(softened, reference.log_softmax(1), log_target=True, reduction="batchmean")
            value = value + share * temperature**2 * divergence
        return value

    def validate(current: nn.Module) -> tuple[float, float]:
        result = evaluate(lambda batch: pick_logits(current(batch)), splits.validation, device=device)
        return result.loss, result.accuracy

    training = TrainingSettings(
        settings.epochs, settings.batch_size, settings.learning_rate, settings.weight_decay, flip, seed, device
    )
    with frozen(teacher):
        history = train(student, splits.train, loss, validate, training, progress)
    return replace(pruned, module=student), history
