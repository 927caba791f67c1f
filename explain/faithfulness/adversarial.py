"""Adversarial images: perturbations within a bound per pixel, chosen so that the network misclassifies the image.

FGSM takes one step along the sign of the loss's gradient (Goodfellow et al., ICLR 2015, section 4). PGD takes several small
steps from a random start and projects onto the bound after each (Madry et al., ICLR 2018, section 2.1, L-infinity).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import InputError, UsageError
from ...network.hooks import frozen, pick_logits
from ...network.network import Network

BATCH = 64


@dataclass(frozen=True)
class DescentSettings:
    """Settings of PGD.

    ``epsilon`` bounds the change of every pixel, ``step`` is the size of each of the ``steps``, both in 1/255 of full
    brightness. ``targeted``: towards the labels instead of away from them. ``seed`` is for the random start.

    Raises:
        UsageError: a number is out of range.
    """

    epsilon: float = 8.0
    step: float = 2.0
    steps: int = 10
    targeted: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epsilon", "step"):
            if not 0 < getattr(self, name) <= 255:
                raise UsageError(f"{name} must be above 0 and at most 255, in 1/255 (got {getattr(self, name)}).")
        if self.steps < 1:
            raise UsageError(f"steps must be at least 1 (got {self.steps}).")


@dataclass(frozen=True)
class AdversarialImages:
    """Perturbed images, ``pixels`` float32 in [0, 1] ``[n, C, H, W]``, and the class scores ``[n, classes]`` before and after.

    No pixel changes by more than ``epsilon`` (in 1/255), up to float32 rounding. ``labels`` are the classes that the attack
    moves away from or, if ``targeted``, towards.
    """

    method: str
    epsilon: float
    targeted: bool
    labels: Tensor
    pixels: Tensor
    logits_before: Tensor
    logits_after: Tensor

    @property
    def succeeded(self) -> Tensor:
        """Which images are now predicted as another class than the label or, if ``targeted``, as the label; bool ``[n]``."""
        return (self.logits_after.argmax(1) == self.labels) == self.targeted


def fast_gradient_sign(
    network: Network,
    pixels: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8.0,
    targeted: bool = False,
    device: str = "cpu",
) -> AdversarialImages:
    """FGSM: ``x + epsilon * sign(dL/dx)`` clipped to [0, 1], where L is the cross-entropy with the label; minus if targeted.

    Args:
        network: unchanged; its normalisation is part of the differentiated function.
        pixels: images ``[n, C, H, W]``, uint8 or float in [0, 1], not normalised.
        labels: classes to move away from (or towards), int64 ``[n]``.
        epsilon: the largest change of a pixel, in 1/255 of full brightness.
        targeted: move towards the labels.
        device: where the network runs.

    Raises:
        InputError: the pixels are outside [0, 1], a class does not exist, or no gradient reaches the pixels.
        UsageError: epsilon is not above 0 and at most 255.
    """
    settings = DescentSettings(epsilon, epsilon, steps=1, targeted=targeted)
    return _attack(network, pixels, labels, settings, random_start=False, device=device)


def projected_gradient_descent(
    network: Network,
    pixels: Tensor,
    labels: Tensor,
    settings: DescentSettings | None = None,
    *,
    device: str = "cpu",
) -> AdversarialImages:
    """PGD: steps along the sign of the gradient from a uniform draw within epsilon, each clipped to epsilon and [0, 1].

    The arguments are those of ``fast_gradient_sign``; settings default to ``DescentSettings()``. The result of the last step is
    returned, as in the paper. Equal seeds give equal starts on every device.

    Raises:
        InputError: the pixels are outside [0, 1], a class does not exist, or no gradient reaches the pixels.
    """
    return _attack(network, pixels, labels, settings or DescentSettings(), random_start=True, device=device)


def _attack(
    network: Network, pixels: Tensor, labels: Tensor, settings: DescentSettings, *, random_start: bool, device: str
) -> AdversarialImages:
    images = _as_fractions(pixels)
    start = images
    if random_start:
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(settings.seed)) * 2 - 1
        start = (images + settings.epsilon / 255 * noise).clamp(0, 1)
    module = network.copy().module.to(device)

    def logits_of(values: Tensor) -> Tensor:
        return pick_logits(module(network.preprocessing.normalise(values)))

    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with frozen(module):
        for begin in range(0, len(images), BATCH):
            image, first, label = (values[begin : begin + BATCH].to(device) for values in (images, start, labels))
            with torch.no_grad():
                before = logits_of(image)
                _check_labels(label, before.shape[1])
            changed = _descend(logits_of, image, first, label, settings)
            with torch.no_grad():
                parts.append((changed.cpu(), before.float().cpu(), logits_of(changed).float().cpu()))
    changed, before, after = (torch.cat(columns) for columns in zip(*parts, strict=True))
    method = "PGD" if random_start else "FGSM"
    return AdversarialImages(method, settings.epsilon, settings.targeted, labels.cpu(), changed, before, after)


def _descend(
    logits_of: Callable[[Tensor], Tensor], images: Tensor, start: Tensor, labels: Tensor, settings: DescentSettings
) -> Tensor:
    """Run the steps from the start; all values are in [0, 1] and on one device."""
    epsilon, step = settings.epsilon / 255, settings.step / 255
    lowest, highest = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    current = start
    for _ in range(settings.steps):
        current = current.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(logits_of(current), labels, reduction="sum")
        if not loss.requires_grad:
            raise InputError(
                "No gradient reaches the pixels (a no_grad or detach in the network's forward?). Remove it."
            )
        (gradient,) = torch.autograd.grad(loss, current)
        if not bool(torch.isfinite(gradient).all()):
            raise InputError("The gradient of the loss is NaN or infinite. Check the network's weights.")
        direction = -gradient.sign() if settings.targeted else gradient.sign()
        current = torch.clamp(current.detach() + step * direction, lowest, highest)
    return current


def _as_fractions(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], float32, on the CPU."""
    values = pixels.detach().cpu()
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if not len(values) or not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError("Expected pixels in [0, 1] or uint8 of at least one image. Pass images before normalisation.")
    return values


def _check_labels(labels: Tensor, classes: int) -> None:
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise InputError(f"There is no class {int(outside[0])}; classes are 0 to {classes - 1}.")
