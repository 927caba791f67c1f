"""Repair without labels: which steps are taken, and which of them are kept."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...common.errors import UsageError
from ...common.progress import Progress, silent
from ...network.channels.cut import rest_of_cut
from ...network.channels.zero_pad import followable
from ...network.graph.pass_through import removed_branches
from ...network.graph.trace import trace
from ...network.images.images import Images
from ...network.network import Network
from ..settings import REPAIRS
from .batch_norm import reestimate_norms
from .distillation import distill
from .judging import judging
from .layer_fits import LayerFit
from .mean_shift import compensate_means
from .reconstruction import reconstruct

STEPS = {
    "none": (),
    "mean": ("mean",),
    "bn": ("mean", "bn"),
    "reconstruct": ("mean", "reconstruct", "bn"),
    "distill": ("mean", "reconstruct", "bn", "distill"),
}
"""The steps of each kind of repair, in order."""
PASSING_WORTH = 1.05
"""Blocks that lost their branch pass their input on, instead of adding a constant, if the divergence grows to at most so many
times: nothing is left of them then, while an addition and its activation take time."""


@dataclass(frozen=True)
class RepairStep:
    """One step of a repair, and its effect on KL(original || pruned), in nats, on validation images.

    The divergences are None if no validation images were given; every step is kept then.
    """

    name: str
    divergence_before: float | None
    divergence_after: float | None
    kept: bool


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Attributes:
        kind: the repair that was asked for.
        images: the number of calibration images.
        steps: every step, kept or reverted.
        compensated: the layers whose means were compensated.
        reestimated: the BatchNorms whose statistics were estimated again.
        fits: the layers that reconstruction fitted.
        reconstruction_images: the number of images that they were fitted on.
        passing: the last layers of removed branches that now add nothing: their blocks pass their input on.
        divergence_passing: the divergence after reconstruction if the blocks that could do so pass their input on.
        divergence_with_constants: the same if they add their best constants. Both are None without such blocks or validation
            images, and if reconstruction was reverted.
    """

    kind: str
    images: int
    steps: tuple[RepairStep, ...] = ()
    compensated: tuple[str, ...] = ()
    reestimated: tuple[str, ...] = ()
    fits: tuple[LayerFit, ...] = ()
    reconstruction_images: int = 0
    passing: tuple[str, ...] = ()
    divergence_passing: float | None = None
    divergence_with_constants: float | None = None

    @property
    def divergence(self) -> float | None:
        """KL(original || pruned) in nats on validation images after the last step that was kept."""
        reached = [step.divergence_after if step.kept else step.divergence_before for step in self.steps]
        return reached[-1] if reached else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RepairReport":
        return cls(
            values["kind"],
            values["images"],
            tuple(RepairStep(**step) for step in values["steps"]),
            tuple(values["compensated"]),
            tuple(values["reestimated"]),
            tuple(LayerFit(**fit) for fit in values["fits"]),
            values["reconstruction_images"],
            tuple(values.get("passing", ())),
            values.get("divergence_passing"),
            values.get("divergence_with_constants"),
        )


def repair(
    original: Network,
    pruned: Network,
    images: Images,
    kind: str = "reconstruct",
    *,
    before: Network | None = None,
    validation: Images | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 128,
    progress: Progress = silent,
) -> tuple[Network, RepairReport]:
    """Repair a pruned network on calibration images, without labels. Neither network passed in is changed.

    Args:
        original: the network before its last cut.
        kind: ``none``; ``mean`` compensates for the mean contribution of removed channels; ``bn`` also re-estimates BatchNorm
            statistics; ``reconstruct`` fits every layer behind the cut by least squares between the two; ``distill`` then
            trains towards the original's outputs.
        before: in a later round the network that was cut last; the original if None.
        validation: images on which a step must lower the divergence from the original's outputs, or it is reverted.

    Raises:
        UsageError: ``kind`` is unknown.
        InputError: reconstruction cannot trace the network.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, images.train), "magnitude")
        >>> groups, costs = secateur.find_groups(network.module, network.example()), secateur.measure_cost(network)
        >>> units = secateur.score_units(groups, scores)
        >>> plan = secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.5))
        >>> small, report = secateur.repair(network, secateur.cut(network, plan), images.train, validation=images.validation)
        >>> [step.name for step in report.steps if step.kept]  # the others were reverted
        ['mean', 'reconstruct']
        >>> report.divergence < report.steps[0].divergence_before / 4  # KL(original || pruned) in nats
        True
    """
    if kind not in REPAIRS:
        raise UsageError(f"repair must be one of {', '.join(REPAIRS)} (got {kind!r}).")
    start = replace(pruned, module=followable(pruned.module, pruned.example(1)).eval())
    judge = judging(original, validation, seed, device) if validation is not None else None
    given = _Given(original, before, images, seed, device, batch_size, judge)
    result, report = _take_steps(start, RepairReport(kind, len(images)), given, progress)
    result.module.eval()
    return result, report


@dataclass(frozen=True)
class _Given:
    """What the steps share, besides the network that they repair. ``judge`` measures the divergence, in nats, of a network."""

    original: Network
    before: Network | None
    images: Images
    seed: int
    device: str
    batch_size: int
    judge: Callable[[Network], float] | None


def _take_steps(
    result: Network,
    report: RepairReport,
    given: _Given,
    progress: Progress,
) -> tuple[Network, RepairReport]:
    """Run the steps of the report's kind; without a judge all are kept, else those that lower the divergence."""
    names, judge = STEPS[report.kind], given.judge
    current = judge(result) if judge is not None else None
    for index, name in enumerate(names):

        def step(done: int, total: int, index: int = index) -> None:
            progress(1000 * index + 1000 * done // max(1, total), 1000 * len(names))

        candidate, details = _STEP[name](result, given, step)
        reached = judge(candidate) if judge is not None else None
        kept = current is None or reached is None or reached < current
        report = replace(report, steps=(*report.steps, RepairStep(name, current, reached, kept)))
        if kept:
            result, current = candidate, reached
            report = replace(report, **details)
    return result, report


Details = dict[str, Any]
"""Fields of the :class:`RepairReport` that a step fills in, by name."""


def _compensate(pruned: Network, given: _Given, progress: Progress) -> tuple[Network, Details]:
    cut, source, before = pruned.cuts[-1], given.original, given.before
    if before is not None and len(before.cuts) == len(pruned.cuts):  # a later round of the same cut
        cut, source = rest_of_cut(cut, before.cuts[-1]), before
    result, step = pruned.copy(), _by_image(progress, len(given.images))
    names = compensate_means(source, result.module, cut, given.images, given.device, given.batch_size, step)
    return result, {"compensated": names}


def _reestimate(pruned: Network, given: _Given, progress: Progress) -> tuple[Network, Details]:
    result, step = pruned.copy(), _by_image(progress, len(given.images))
    names = reestimate_norms(result.module, given.images, given.device, given.batch_size, step)
    return result, {"reestimated": names}


def _reconstruct(pruned: Network, given: _Given, progress: Progress) -> tuple[Network, Details]:
    """Fit all layers; blocks that lost their branch add their best constants or nothing, whatever is better."""
    view = trace(pruned.module, pruned.example())
    zeros = tuple(branch.layer for branch in removed_branches(view) if branch.identity)
    halves = 2 if zeros and given.judge is not None else 1

    def fitted(zeros: tuple[str, ...], half: int) -> tuple[Network, Details]:
        def step(done: int, total: int) -> None:
            progress(half * total + done, halves * total)

        found = reconstruct(given.original, pruned, given.images, device=given.device, zeros=zeros, progress=step)
        return found[0], {"fits": found[1], "reconstruction_images": found[2], "passing": zeros}

    if not zeros:
        return fitted((), 0)
    passing = fitted(zeros, 0)
    if given.judge is None:
        return passing
    constant = fitted((), 1)
    divergences = given.judge(passing[0]), given.judge(constant[0])
    result, details = passing if divergences[0] <= PASSING_WORTH * divergences[1] else constant
    names = ("divergence_passing", "divergence_with_constants")
    return result, {**details, **dict(zip(names, divergences, strict=True))}


def _distill(pruned: Network, given: _Given, progress: Progress) -> tuple[Network, Details]:
    result = pruned.copy()
    distill(given.original, result.module, given.images, seed=given.seed, device=given.device, progress=progress)
    return result, {}


_STEP: Mapping[str, Callable[[Network, _Given, Progress], tuple[Network, Details]]] = {
    "mean": _compensate,
    "bn": _reestimate,
    "reconstruct": _reconstruct,
    "distill": _distill,
}


def _by_image(progress: Progress, total: int) -> Callable[[int], None]:
    """A callback for batches: it adds up their images and reports how many of ``total`` are done."""
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    return step
