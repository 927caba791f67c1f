"""Fine-tuning of a pruned network with distillation from the original, optionally with PICNN's interpretation loss."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.progress import Progress, in_parts, silent
from ...explain.picnn.membership import Membership, fit_membership
from ...explain.picnn.training import train_picnn
from ...explain.settings import PicnnSettings
from ...network.channels.zero_pad import followable
from ...network.evaluation import evaluate
from ...network.graph.pass_through import holding_zeros
from ...network.hooks import frozen, pick_logits, seeded
from ...network.images.splits import Splits
from ...network.network import Network
from ...network.training import History, TrainingSettings, train
from ..settings import RecoverySettings

MEMBERSHIP_IMAGES = 1000


def recover(
    original: Network,
    pruned: Network,
    splits: Splits,
    settings: RecoverySettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> tuple[Network, History]:
    """Fine-tune on the training split, and keep the epoch that is best on validation. Neither network passed in is changed.

    The loss is ``(1 - d) * cross-entropy + d * T^2 * KL(original || pruned)`` on softened class scores (Hinton et al.,
    Distilling the Knowledge in a Neural Network, 2015).

    Args:
        checkpoint: a file in which training is saved after every epoch, and from which it resumes.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, images.train), "magnitude")
        >>> groups, costs = secateur.find_groups(network.module, network.example()), secateur.measure_cost(network)
        >>> units = secateur.score_units(groups, scores)
        >>> plan = secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.5))
        >>> small = secateur.cut(network, plan)
        >>> small, history = secateur.recover(network, small, images, secateur.RecoverySettings(epochs=1))
        >>> history.epochs[history.best].validation_accuracy > 0.9
        True
    """
    student = followable(pruned.module, pruned.example(1)).to(device)
    teacher = original.copy().module.to(device)

    def validate(current: nn.Module) -> tuple[float, float]:
        result = evaluate(lambda batch: pick_logits(current(batch)), splits.validation, device=device)
        return result.loss, result.accuracy

    training = _training(original, settings, seed, device)
    with frozen(teacher), seeded(seed), holding_zeros(student, original.example(1)):
        loss = distillation_loss(teacher, settings)
        history = train(student, splits.train, loss, validate, training, progress, checkpoint=checkpoint)
    return replace(pruned, module=student), history


def recover_with_pathway(
    original: Network,
    pruned: Network,
    splits: Splits,
    settings: RecoverySettings,
    picnn: PicnnSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> tuple[Network, History, Membership]:
    """Fine-tune as :func:`recover` does, with PICNN's interpretation loss ``lambda H(y, y2)`` added.

    P is initialised with a membership learned post hoc on ``MEMBERSHIP_IMAGES`` training images of the pruned network. The
    epoch is chosen by both accuracies, as in :func:`~secateur.explain.picnn.training.train_picnn`.

    Raises:
        InputError: the network cannot be traced or has no target layer.
    """
    part = in_parts(progress, ("membership", 1), ("training", 9))
    _, start = fit_membership(
        pruned,
        splits.train.sample(MEMBERSHIP_IMAGES, seed),
        picnn,
        seed=seed,
        device=device,
        progress=part("membership"),
    )
    teacher = original.copy().module.to(device)
    with frozen(teacher):
        trained = train_picnn(
            pruned,
            splits,
            picnn,
            seed=seed,
            device=device,
            progress=part("training"),
            discriminate=distillation_loss(teacher, settings),
            start=start,
            training=_training(original, settings, seed, device),
            checkpoint=checkpoint,
        )
    return trained.network, trained.history, trained.membership


def _training(original: Network, settings: RecoverySettings, seed: int, device: str) -> TrainingSettings:
    flip = settings.flip if settings.flip is not None else original.input_shape[0] == 3
    return TrainingSettings(
        settings.epochs, settings.batch_size, settings.learning_rate, settings.weight_decay, flip, seed, device
    )


def distillation_loss(teacher: nn.Module, settings: RecoverySettings) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function of (class scores, images, labels): cross-entropy plus divergence from a frozen teacher, as weighted."""
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

    return loss
