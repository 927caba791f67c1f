"""The one training loop, on Hugging Face accelerate; ``recover`` and the digits' own training use it."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .images import Images
from .probe import pick_logits

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(class scores ``[n, classes]``, images ``[n, C, H, W]``, labels ``[n]``) to a scalar."""


@dataclass(frozen=True)
class TrainingSettings:
    """Stochastic gradient descent with Nesterov momentum 0.9 (or Adam), a warm-up, then cosine decay to zero, by steps."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    flip: bool
    seed: int
    device: str = "cpu"
    optimizer: str = "sgd"


@dataclass(frozen=True)
class Epoch:
    """One row of a history; epoch 0 is the state before training, whose ``train_loss`` is None."""

    epoch: int
    train_loss: float | None
    validation_loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class History:
    """All epochs; ``best`` is the one whose weights were kept: highest validation accuracy, then lowest loss."""

    epochs: tuple[Epoch, ...]
    best: int

    def to_json(self) -> dict[str, Any]:
        return {"best": self.best, "epochs": [asdict(epoch) for epoch in self.epochs]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "History":
        return cls(tuple(Epoch(**row) for row in values["epochs"]), values["best"])


def augment(pixels: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """The usual augmentation for the image size, one draw per image.

    Up to 96 pixels: a shift by at most an eighth of the side, zero-padded; above: a crop of 35% to 100% of the area with
    an aspect ratio of 3/4 to 4/3, resized back. Then, if ``flip``, mirrored with probability one half.

    Args:
        pixels: ``[n, C, H, W]`` in any range whose zero is a neutral value.
    """
    count, _, height, width = pixels.shape
    if max(height, width) <= 96:
        pad = (max(1, height // 8), max(1, width // 8))
        shift = torch.stack([torch.randint(-size, size + 1, (count,), generator=generator) for size in pad], 1)
        scale = torch.ones(count, 2)
        centre = shift * 2.0 / torch.tensor([height, width])
    else:
        area = torch.empty(count).uniform_(0.35, 1.0, generator=generator)
        ratio = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3), generator=generator).exp()
        scale = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], 1).clamp(max=1.0)
        centre = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - scale)
    mirrored = torch.rand(count, generator=generator) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = torch.where(mirrored, -scale[:, 1], scale[:, 1])
    theta[:, 1, 1] = scale[:, 0]
    theta[:, 0, 2], theta[:, 1, 2] = centre[:, 1], centre[:, 0]
    grid = nn.functional.affine_grid(theta.to(pixels.device), list(pixels.shape), align_corners=False)
    return nn.functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def train(
    module: nn.Module,
    images: Images,
    loss: Loss,
    validate: Callable[[nn.Module], tuple[float, float]] | None,
    settings: TrainingSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> History:
    """Train ``module`` in place and leave it with the weights of the best epoch, in evaluation mode.

    The state before training is epoch 0 and takes part, so training never ends below where it began.

    Args:
        validate: gives (loss, accuracy) of the module on validation images; None keeps the last weights unjudged.
        progress: called with (steps done, steps in all).
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=settings.device == "cpu")
    generator = torch.Generator().manual_seed(settings.seed)
    decayed = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in module.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, lr=settings.learning_rate)
    else:
        optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)
    steps_per_epoch = max(1, len(images) // settings.batch_size)
    total = settings.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total))
    prepared, optimizer = accelerator.prepare(module, optimizer)

    def row(epoch: int, train_loss: float | None) -> Epoch:
        assert validate is not None
        validation_loss, accuracy = validate(accelerator.unwrap_model(prepared).eval())
        return Epoch(epoch, train_loss, validation_loss, accuracy)

    epochs = [] if validate is None else [row(0, None)]
    best, best_state = epochs[0] if epochs else None, copy.deepcopy(module.state_dict())
    done = 0
    for epoch in range(1, settings.epochs + 1):
        prepared.train()
        order = torch.randperm(len(images), generator=generator)
        order = order[: max(steps_per_epoch * settings.batch_size, min(len(images), settings.batch_size))]
        sum_of_losses = 0.0
        for batch, labels in images.batches(settings.batch_size, order):
            varied = augment(batch, settings.flip, generator).to(accelerator.device)
            labels = labels.to(accelerator.device)
            value = loss(pick_logits(prepared(varied)), varied, labels)
            optimizer.zero_grad()
            accelerator.backward(value)
            accelerator.clip_grad_norm_(module.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            sum_of_losses += float(value.detach())
            done += 1
            progress(done, total)
        if best is None:
            continue
        current = row(epoch, sum_of_losses / steps_per_epoch)
        epochs.append(current)
        if (current.validation_accuracy, -current.validation_loss) > (best.validation_accuracy, -best.validation_loss):
            best, best_state = current, copy.deepcopy(module.state_dict())
    if best is not None:
        module.load_state_dict(best_state)
    module.to("cpu").eval()
    return History(tuple(epochs), best.epoch if best else settings.epochs)


def _rate(step: int, total: int) -> float:
    warm = max(1, total // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
