"""The measurement of sensitivities: units of one group are removed, its readers are reconstructed, the rest stays whole.

The loss is the mean of KL(original || cut) over the class scores, in nats, on calibration images that took no part in the fit.
No label is read. Activations are computed once, in network order, and reused up to the group's first reader.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...common.progress import Progress, in_parts, silent
from ...explain.unit_scores import UnitScores
from ...network.channels.group import ChannelGroup
from ...network.channels.zero_pad import followable
from ...network.evaluation import divergence, predict
from ...network.graph.trace import trace
from ...network.hooks import pick_logits
from ...network.images.images import Images
from ...network.network import Network
from ..repair.activations import Activations
from ..repair.least_squares import ReconstructionSettings
from .branch_losses import DEPTH, measure_branches
from .group_trial import GroupTrial
from .sensitivity import RUINED, Sensitivity
from .trial_images import SHARES, split_images


def measure_sensitivity(
    network: Network,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, UnitScores],
    images: Images,
    settings: ReconstructionSettings | None = None,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    branches: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """Measure the loss of every unlocked group at 3/4, 1/2, 1/4 and 1/8 of its units, the lowest scores removed first.

    A group that ends a removable residual branch is also measured without any unit, with the whole branch removed and the
    next ``DEPTH`` layers fitted (:mod:`~secateur.prune.widths.branch_losses`).

    Args:
        images: calibration images in random order; the first half fits, the second half judges. At most 400 each are used,
            fewer if their activations would not fit in memory or the work would exceed ``WORK_MACS``.
        branches: losses of whole branches that :func:`~secateur.prune.widths.branch_losses.measure_branches` measured; they
            do not depend on the scores. If None they are measured.

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
    fitted, judged = split_images(network, groups, images)
    view = trace(followable(network.module, network.example(1)), network.example()).to(device)
    trials = [GroupTrial(view, group) for group in groups if not group.locked]
    trials.sort(key=lambda trial: trial.first)
    part = in_parts(progress, ("whole branches", len(trials)), *((trial.group.name, 1) for trial in trials))
    if branches is None:
        step = part("whole branches")
        branches = measure_branches(
            network, groups, images, settings, device=device, batch_size=batch_size, progress=step
        )
    with torch.no_grad():
        reference = predict(network.copy().module.to(device), judged, batch_size, device, pick=pick_logits)
        case = _Case(view, fitted, judged, batch_size, reference, settings or ReconstructionSettings())
        curves = _curves(trials, scores, case, part)
    for group in groups:
        if group.ends_branch and group.branch in branches:
            curves[group.name] = ((0, branches[group.branch]), *curves[group.name])
    return Sensitivity(curves, len(fitted), len(judged), DEPTH)


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


def _curves(
    trials: Sequence[GroupTrial], scores: Mapping[str, UnitScores], case: _Case, part: Callable[[str], Progress]
) -> dict[str, tuple[tuple[int, float], ...]]:
    """The loss of every group at every width above zero."""
    curves = {}
    shared = case.activations()  # groups with one reader follow each other through the network; others look far ahead
    for trial in trials:
        name = trial.group.name
        lowest_first = scores[name].values.argsort(stable=True).tolist()
        activations = shared if len(trial.readers) == 1 else case.activations()
        curves[name] = _curve(trial, lowest_first, activations, case, part(name))
    return curves


def _curve(
    trial: GroupTrial,
    lowest_first: Sequence[int],
    activations: tuple[Activations, Activations],
    case: _Case,
    progress: Progress,
) -> tuple[tuple[int, float], ...]:
    """The loss of one group at every width above zero, ascending; the last is the whole group."""
    units = trial.group.units
    widths = sorted({max(1, round(units * share)) for share in SHARES} - {units})
    curve = []
    with trial.holding(*activations):
        for done, kept in enumerate(widths, 1):
            logits = trial.run(*activations, lowest_first[: units - kept], case.settings)
            lost = divergence(logits, case.reference)
            curve.append((kept, max(0.0, lost) if math.isfinite(lost) else RUINED))
            progress(done, len(widths))
    return (*curve, (units, 0.0))
