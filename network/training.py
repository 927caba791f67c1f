"""The training loop, on Hugging Face accelerate, for fine-tuning, PICNN and the digits network."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..common.files import replacing
from ..common.progress import Progress, silent
from .hooks import pick_logits
from .images.images import Images

Loss = Callable[[Any, Tensor, Tensor], Tensor]
"""(class scores ``[n, classes]``, images ``[n, C, H, W]``, labels ``[n]``) to a scalar."""
Forward = Callable[[nn.Module, Tensor, Tensor], Any]
"""(module, images, labels) to the loss's first argument."""


def class_scores(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The default forward pass: class scores, whatever the labels."""
    return pick_logits(module(images))


class Judged(NamedTuple):
    """A network on validation images: mean ``loss`` and ``accuracy`` in [0, 1].

    ``merit`` chooses the best epoch (the accuracy does, if None). ``measures`` are further figures for the history.
    """

    loss: float
    accuracy: float
    merit: float | None = None
    measures: Mapping[str, float] = {}


@dataclass(frozen=True)
class TrainingSettings:
    """Stochastic gradient descent with Nesterov momentum 0.9 (or Adam), linear warm-up, then cosine decay, step by step.

    ``warm_up`` is the share of the steps in which the learning rate rises; it decays to ``final_share`` of its peak. ``rates``
    maps the beginning of parameter names to factors of the learning rate; these parameters have no weight decay.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    flip: bool
    seed: int
    device: str = "cpu"
    optimizer: str = "sgd"
    warm_up: float = 0.05
    final_share: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Epoch:
    """One row of a history; epoch 0 is the state before training, whose ``train_loss`` is None."""

    epoch: int
    train_loss: float | None
    validation_loss: float
    validation_accuracy: float
    merit: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[float, float]:
        """The best epoch has the highest: (merit, or accuracy if None; minus the validation loss)."""
        return self.validation_accuracy if self.merit is None else self.merit, -self.validation_loss


@dataclass(frozen=True)
class History:
    """All epochs; ``best`` is the one whose weights were kept: highest merit or accuracy, then lowest validation loss."""

    epochs: tuple[Epoch, ...]
    best: int

    def to_json(self) -> dict[str, Any]:
        return {"best": self.best, "epochs": [asdict(epoch) for epoch in self.epochs]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "History":
        return cls(tuple(Epoch(**row) for row in values["epochs"]), values["best"])


def augment(pixels: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Augment each image at random, as is usual for the image size.

    Up to 96 pixels: a shift by at most an eighth of the side, zero-padded. Above: a crop of 35% to 100% of the area with
    an aspect ratio of 3/4 to 4/3, resized back. Then, if ``flip``, a horizontal flip with probability one half.

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
    validate: Callable[[nn.Module], tuple[float, float] | Judged] | None,
    settings: TrainingSettings,
    progress: Progress = silent,
    *,
    forward: Forward = class_scores,
    after_step: Callable[[], None] = lambda: None,
    checkpoint: Path | None = None,
) -> History:
    """Train ``module`` in place; it ends on the CPU in evaluation mode with the weights of the best epoch.

    Epoch 0 is the state before training and counts, so training never ends with a worse epoch than it started from.

    Args:
        validate: evaluates the module on validation images, to (loss, accuracy) at least; None keeps the last weights.
        progress: called with (steps done, total steps).
        forward: the forward pass, whose result is the loss's first argument.
        after_step: called after every step of the optimizer.
        checkpoint: a file for this training only, written after every epoch; if it exists, training resumes from it and ends
            with the same weights as without the interruption.
    """
    loop = _Loop(module, images, settings, checkpoint)
    state = loop.state

    def row(epoch: int, train_loss: float | None) -> Epoch:
        assert validate is not None
        judged = Judged(*validate(loop.unwrapped()))
        return Epoch(epoch, train_loss, judged.loss, judged.accuracy, judged.merit, dict(judged.measures))

    if not state.read():
        state.epochs = [] if validate is None else [row(0, None)]
        state.best = copy.deepcopy(module.state_dict())
    for epoch in range(state.finished + 1, settings.epochs + 1):
        mean_loss = loop.run_epoch(loss, forward, after_step, progress)
        if validate is not None:
            current = row(epoch, mean_loss)
            if current.rank > max(earlier.rank for earlier in state.epochs):
                state.best = copy.deepcopy(module.state_dict())
            state.epochs.append(current)
        state.finished = epoch
        state.write()
    if state.epochs:
        module.load_state_dict(state.best)
    module.to("cpu").eval()
    best = max(state.epochs, key=lambda epoch: (epoch.rank, -epoch.epoch)) if state.epochs else None
    return History(tuple(state.epochs), best.epoch if best else settings.epochs)


class _Loop:
    """A module on its device with its optimizer and learning rates, ready to run epochs over images."""

    def __init__(self, module: nn.Module, images: Images, settings: TrainingSettings, checkpoint: Path | None) -> None:
        from accelerate import Accelerator

        # accelerate keeps a process on the first device it chose, so the device is chosen here.
        self._accelerator = Accelerator(device_placement=False)
        several = self._accelerator.num_processes > 1
        self._device = self._accelerator.device if several else torch.device(settings.device)
        self._module, self._images, self._settings = module.to(self._device), images, settings
        self._draws = torch.Generator().manual_seed(settings.seed)
        optimizer = _optimizer(module, settings)
        self._steps_per_epoch = max(1, len(images) // settings.batch_size)
        self._steps = settings.epochs * self._steps_per_epoch
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, self._steps, settings))
        self._prepared, self._optimizer = self._accelerator.prepare(module, optimizer)
        self.state = _Checkpoint(checkpoint, module, self._optimizer, self._schedule, self._draws)

    def unwrapped(self) -> nn.Module:
        """The module as it was given, in evaluation mode."""
        module: nn.Module = self._accelerator.unwrap_model(self._prepared).eval()
        return module

    def run_epoch(self, loss: Loss, forward: Forward, after_step: Callable[[], None], progress: Progress) -> float:
        """One pass over the images in random order; the mean loss of its steps."""
        self._prepared.train()
        size, count = self._settings.batch_size, len(self._images)
        order = torch.randperm(count, generator=self._draws)
        order = order[: max(self._steps_per_epoch * size, min(count, size))]
        done = self.state.finished * self._steps_per_epoch
        sum_of_losses = 0.0
        for step, (batch, labels) in enumerate(self._images.batches(size, order), start=1):
            varied = augment(batch, self._settings.flip, self._draws).to(self._device)
            labels = labels.to(self._device)
            value = loss(forward(self._prepared, varied, labels), varied, labels)
            self._optimizer.zero_grad()
            self._accelerator.backward(value)
            self._accelerator.clip_grad_norm_(self._module.parameters(), 5.0)
            self._optimizer.step()
            after_step()
            self._schedule.step()
            sum_of_losses += float(value.detach())
            progress(done + step, self._steps)
        return sum_of_losses / self._steps_per_epoch


class _Checkpoint:
    """The state from which training resumes after an epoch; written to a file if one is given."""

    def __init__(
        self, path: Path | None, module: nn.Module, optimizer: Any, schedule: Any, draws: torch.Generator
    ) -> None:
        self._path, self._draws = path, draws
        self._parts = {"module": module, "optimizer": optimizer, "schedule": schedule}
        self.epochs: list[Epoch] = []
        self.best: dict[str, Any] = {}
        self.finished = 0

    def write(self) -> None:
        if self._path is None:
            return
        held = {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "best": self.best,
            "finished": self.finished,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "draws": self._draws.get_state(),
            "global": torch.get_rng_state(),
            "devices": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        with replacing(self._path) as whole:
            torch.save(held, whole)

    def read(self) -> bool:
        """Restore the state from the file; whether there was one."""
        if self._path is None or not self._path.is_file():
            return False
        held = torch.load(self._path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(held[name])
        self.best, self.finished = held["best"], held["finished"]
        self.epochs = [Epoch(**row) for row in held["epochs"]]
        self._draws.set_state(held["draws"])
        torch.set_rng_state(held["global"])
        if len(held["devices"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(held["devices"])
        return True


def _optimizer(module: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Weight decay applies to weights, not to biases, norms and parameters with a learning rate of their own."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        own = next((factor for start, factor in settings.rates.items() if name.startswith(start)), None)
        decays = own is None and parameter.dim() > 1
        groups.setdefault((1.0 if own is None else own, decays), []).append(parameter)
    rows = [
        {
            "params": parameters,
            "lr": settings.learning_rate * rate,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (rate, decays), parameters in sorted(groups.items(), key=lambda group: (group[0][0], not group[0][1]))
    ]
    if settings.optimizer == "adam":
        return torch.optim.Adam(rows, lr=settings.learning_rate)
    return torch.optim.SGD(rows, lr=settings.learning_rate, momentum=0.9, nesterov=True)


def _rate(step: int, total: int, settings: TrainingSettings) -> float:
    warm = max(1, int(total * settings.warm_up))
    if step < warm and settings.warm_up:
        return (step + 1) / warm
    warm = warm if settings.warm_up else 0
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
    return settings.final_share + (1 - settings.final_share) * cosine
