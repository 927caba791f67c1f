"""The measurement of sensitivities: units of one group are removed, its readers are reconstructed, the rest stays whole.

The loss is the mean of KL(original || cut) over the class scores, in nats, on calibration images that took no part in the fit.
No label is read. Activations are computed once, in network order, and reused up to the group's first reader.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...common.errors import InputError
from ...common.progress import Progress, in_parts, silent
from ...explain.unit_scores import UnitScores
from ...network.channels.group import ChannelGroup
from ...network.channels.zero_pad import followable
from ...network.evaluation import divergence, predict
from ...network.graph.trace import trace
from ...network.hooks import pick_logits
from ...network.images.images import Images
from ...network.network import Network
from ..cost import measure_cost
from ..repair.activations import Activations
from ..repair.least_squares import ReconstructionSettings
from .group_trial import GroupTrial
from .sensitivity import RUINED, Sensitivity

MEMORY_BYTES, LIVE_MAPS = 2 * 2**30, 8
"""Memory for activations; an image is assumed to need this many maps of the largest size."""
SHARES = (0.75, 0.5, 0.25, 0.125)
"""The shares of a group's units at which it is measured."""
FITTED_IMAGES, JUDGED_IMAGES = 400, 400
WORK_MACS, FEWEST_IMAGES = 10_000_000_000_000, 64
"""Large networks with many groups get fewer images, so that the measurement stays near this many multiply-accumulates."""


def measure_sensitivity(
    network: Network,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, UnitScores],
    images: Images,
    settings: ReconstructionSettings | None = None,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    progress: Progress = silent,
) -> Sensitivity:
    """Measure the loss of every unlocked group at 3/4, 1/2, 1/4 and 1/8 of its units, the lowest scores removed first.

    A group that ends a removable residual branch is also measured without any unit, the branch replaced by a constant.

    Args:
        images: calibration images in random order; the first half fits, the second half judges. At most 400 each are used,
            fewer if their activations would not fit in memory or the work would exceed ``WORK_MACS``.

    Raises:
        InputError: the network cannot be traced, or there are fewer than four images.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> calibration = images.train.sample(200, seed=0)
        >>> groups = secateur.find_groups(network.module, network.example())
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, calibration), "gap")
        >>> units = secateur.score_units(groups, scores)
        >>> sensitivity = secateur.measure_sensitivity(network, groups, units, calibration)
        >>> [kept for kept, loss in sensitivity.curves["stem.0"]]  # the loss is in nats
        [4, 8, 16, 24, 32]
    """
    fitted, judged = _split(network, groups, images)
    view = trace(followable(network.module, network.example(1)), network.example()).to(device)
    trials = [GroupTrial(view, group) for group in groups if not group.locked]
    trials.sort(key=lambda trial: trial.first)
    curves: dict[str, tuple[tuple[int, float], ...]] = {}
    with torch.no_grad():
        reference = predict(network.copy().module.to(device), judged, batch_size, device, pick=pick_logits)
        case = _Case(view, fitted, judged, batch_size, reference, settings or ReconstructionSettings())
        shared = (
            case.activations()
        )  # groups with one reader follow each other through the network; others look far ahead
        part = in_parts(progress, *((trial.group.name, 1) for trial in trials))
        for trial in trials:
            name = trial.group.name
            lowest_first = scores[name].values.argsort(stable=True).tolist()
            activations = shared if len(trial.readers) == 1 else case.activations()
            curves[name] = _curve(trial, lowest_first, activations, case, part(name))
    return Sensitivity(curves, len(fitted), len(judged))


@dataclass(frozen=True)
class _Case:
    """What all trials of a measurement share; ``reference`` holds the original's class scores of the judged images."""

    view: fx.GraphModule
    fitted: Images
    judged: Images
    batch_size: int
    reference: Tensor
    settings: ReconstructionSettings

    def activations(self) -> tuple[Activations, Activations]:
        """New activations on the fitted and on the judged images."""
        made = Activations(self.view), Activations(self.view)
        for activations, images in zip(made, (self.fitted, self.judged), strict=True):
            activations.feed(images, self.batch_size)
        return made


def _curve(
    trial: GroupTrial,
    lowest_first: Sequence[int],
    activations: tuple[Activations, Activations],
    case: _Case,
    progress: Progress,
) -> tuple[tuple[int, float], ...]:
    """The loss of one group at every width, ascending; the last is the whole group."""
    units = trial.group.units
    widths = sorted({max(1, round(units * share)) for share in SHARES} - {units})
    if trial.group.ends_branch:
        widths = [0, *widths]
    curve = []
    with trial.holding(*activations):
        for done, kept in enumerate(widths, 1):
            logits = trial.run(*activations, lowest_first[: units - kept], case.settings)
            lost = divergence(logits, case.reference)
            curve.append((kept, max(0.0, lost) if math.isfinite(lost) else RUINED))
            progress(done, len(widths))
    return (*curve, (units, 0.0))


def _split(network: Network, groups: Sequence[ChannelGroup], images: Images) -> tuple[Images, Images]:
    """The images that the readers are fitted on, and those that the loss is measured on."""
    trials = len(SHARES) * sum(1 for group in groups if not group.locked)
    within_work = WORK_MACS // max(1, measure_cost(network).of({}).macs * trials)
    available = min(len(images), 2 * _affordable_images(network), max(FEWEST_IMAGES, within_work))
    if available < 4:
        raise InputError("Sensitivities need at least four calibration images; raise --calibration.")
    fitted, judged = min(FITTED_IMAGES, available // 2), min(JUDGED_IMAGES, available - available // 2)
    return images.subset(torch.arange(fitted)), images.subset(torch.arange(fitted, fitted + judged))


def _affordable_images(network: Network) -> int:
    """The number of images whose activations fit in ``MEMORY_BYTES``."""
    largest = 0

    def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [child.register_forward_hook(hook) for child in network.module.modules() if not list(child.children())]
    try:
        with torch.no_grad():
            network.module(network.example(1))
    finally:
        for handle in handles:
            handle.remove()
    return max(16, MEMORY_BYTES // (LIVE_MAPS * max(1, largest)))
