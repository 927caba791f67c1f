"""``--dry-run``: the groups that a run would prune, and rough estimates of its time and memory, before any work."""

import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..common.progress import Observer
from ..explain.ranking import members_of
from ..explain.registry import get_ranker
from ..explain.scores import RankingTask
from ..network.channels.group import ChannelGroup
from ..network.hooks import frozen, pick_logits
from ..prune.cost import CostModel
from ..prune.locked_share import WORDS, LockedShare, group_shares
from ..prune.widths.trial_images import LIVE_MAPS, MEMORY_BYTES, SHARES
from ..prune.widths.width_book import alignment
from .inputs import Inputs, load_inputs
from .locks import locks_of, refusal
from .prune_and_export import check_release, check_request
from .recipe.recipe import Recipe
from .stages.ranking import Channels, channels_of, check_cuttable

QUICK_RANKERS = ("gap", "taylor")
"""Rankers that take one forward and one backward pass over the calibration set."""
FORWARD_AND_BACKWARD, TRAINING_STEP = 3.0, 4.0
"""The cost of a quick ranker, and of a step of fine-tuning with its teacher, in forward passes."""
TRIAL, BRANCH_TRIAL, EVIDENCE = 0.45, 2.0, 8.0
"""The cost of one trial of the sensitivities, of one of a whole branch, and of the evidence page, in passes over the
calibration set."""
REPAIR_PASSES = {"none": 0.0, "mean": 1.0, "bn": 2.0, "reconstruct": 12.0, "distill": 60.0}
EXPORT_SECONDS, EXPORT_SECONDS_A_LAYER = 2.0, 0.15
LATENCY_SECONDS, RUNS_TIMED = 4.2, 60
"""The time of one batch size: at least these seconds, and about this many runs of both files."""


@dataclass(frozen=True)
class GroupRow:
    """One group: its units, the alignment of its width, its layers' shares of the cost, and why it is locked (or empty)."""

    name: str
    layers: tuple[str, ...]
    units: int
    step: int
    macs_share: float
    params_share: float
    locked: str


@dataclass(frozen=True)
class DryRun:
    """The plan of a run: groups, the cost of locks, the budget in words, seconds by stage (None if not estimated), memory.

    ``out_of_reach`` says why no plan can reach the budget; it is empty if one can, or with best effort.
    """

    groups: tuple[GroupRow, ...]
    locks: LockedShare
    budget: str
    out_of_reach: str
    inputs: tuple[tuple[str, str], ...]
    seconds: tuple[tuple[str, float | None], ...]
    memory_bytes: int

    @property
    def total_seconds(self) -> float:
        """The sum over the estimated stages."""
        return sum(seconds for _, seconds in self.seconds if seconds is not None)


@dataclass(frozen=True)
class _Pace:
    """``forward_s``: one image through the network. ``largest`` and ``all_maps``: bytes of one image's activations."""

    forward_s: float
    largest: int
    all_maps: int
    layers: int


def dry_run(recipe: Recipe, observer: Observer | None = None) -> DryRun:
    """Run all checks of a run, and estimate its time and memory from a timed forward pass.

    Nothing is written. The estimate is rough: its purpose is to distinguish minutes from hours. Whether a latency
    budget can be reached is not known here, as that takes a table of timed layers.

    Raises:
        SecateurError: as the run itself before its work, except for a budget out of reach, which is part of the result.
    """
    observer = observer or Observer()
    request = check_request(recipe)
    with observer.stage("load") as progress:
        inputs = load_inputs(recipe, progress)
    for note in inputs.notes:
        observer.say(note)
    check_release(request, inputs, observer)
    with observer.stage("channels"):
        channels = channels_of(inputs.network, inputs.fingerprint)
    check_cuttable(channels, inputs)
    with observer.stage("pace"):
        pace = _measure_pace(inputs)
    locks = locks_of(channels, recipe.budget)
    return DryRun(
        tuple(_group_row(group, channels.costs, recipe.budget.round_to) for group in channels.groups),
        locks,
        _budget(inputs, channels),
        refusal(locks, recipe.budget),
        inputs_in_words(inputs),
        tuple(_estimates(inputs, channels, pace)),
        _memory(inputs, pace),
    )


def inputs_in_words(inputs: Inputs) -> tuple[tuple[str, str], ...]:
    """The network and its images, in words."""
    network, splits = inputs.network, inputs.splits
    parameters = sum(parameter.numel() for parameter in network.module.parameters())
    return (
        ("model", inputs.recipe.model.model),
        ("input", "x".join(map(str, network.input_shape))),
        ("parameters", f"{parameters:,}"),
        ("classes", str(len(splits.class_names))),
        ("training images", f"{len(splits.train):,}"),
        ("calibration set", f"{len(inputs.calibration):,}"),
        ("validation images", f"{len(splits.validation):,}"),
        ("test images", f"{len(splits.test):,}"),
        ("images without labels", ", ".join(splits.unlabelled) or "none"),
        ("device", inputs.device),
    )


def _group_row(group: ChannelGroup, costs: CostModel, round_to: str | int) -> GroupRow:
    layers = tuple(dict.fromkeys(member.layer for member in group.producers))
    shares = group_shares(group, costs)
    step = 1 if group.locked else alignment(group, round_to)
    return GroupRow(group.name, layers, group.units, step, shares["macs"], shares["params"], group.locked)


def _budget(inputs: Inputs, channels: Channels) -> str:
    budget, whole = inputs.recipe.budget, channels.costs.whole
    if budget.max_drop is not None:
        return f"the fewest MACs (of {whole.macs:,}) that lose at most {budget.max_drop:g} points on validation images"
    if budget.by_time:
        batch, left = inputs.recipe.measurement.latency_batch, budget.fraction
        return f"{1 / left:.3g} times as fast ({100 * left:.3g}% of the measured latency) at batch {batch}"
    amount = whole.of(budget.resource)
    words = WORDS[budget.resource]
    rounds = f" in {budget.rounds} rounds" if budget.rounds > 1 else ""
    return f"{100 * budget.fraction:g}% of {amount:,} {words}: at most {int(budget.fraction * amount):,}{rounds}"


def _measure_pace(inputs: Inputs) -> _Pace:
    """Time forward passes on the run's own device and images, and add up the activations of one image."""
    network = inputs.network.copy()
    task = RankingTask(network, inputs.calibration, inputs.recipe.seed, inputs.device)
    module, sizes = network.module.to(inputs.device), list[int]()

    def hook(_module: nn.Module, _inputs: tuple[object, ...], output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    leaves = [child for child in module.modules() if not list(child.children())]
    handles = [child.register_forward_hook(hook) for child in leaves]
    try:
        with torch.no_grad():
            module(network.example(1).to(inputs.device))
    finally:
        for handle in handles:
            handle.remove()
    count = min(task.batch_size, len(inputs.calibration))
    ((batch, _),) = list(inputs.calibration.subset(torch.arange(count)).batches(count))
    batch, seconds = batch.to(inputs.device), []
    with frozen(module), torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            pick_logits(module(batch)).cpu()  # the copy waits for the device
            seconds.append(time.perf_counter() - start)
    layers = sum(isinstance(child, nn.Conv2d | nn.Linear) for child in leaves)
    return _Pace(min(seconds) / count, max(sizes), sum(sizes), layers)


def _estimates(inputs: Inputs, channels: Channels, pace: _Pace) -> list[tuple[str, float | None]]:
    """Seconds of each stage, for one try; a search by drop makes up to six tries, by latency up to five."""
    recipe, splits = inputs.recipe, inputs.splits
    a_pass = pace.forward_s * len(inputs.calibration)
    rounds = recipe.budget.rounds
    free = sum(not group.locked for group in channels.groups)
    branches = len({group.branch for group in channels.groups if group.branch})
    trials = TRIAL * len(SHARES) * free + BRANCH_TRIAL * branches if recipe.budget.allocation == "sensitivity" else 0.0
    repair = REPAIR_PASSES[recipe.repair.repair] * a_pass
    members = members_of(recipe.ranking.rank_by)
    rows: list[tuple[str, float | None]] = [
        ("explain", _ranking_seconds(recipe.ranking.rank_by, rounds * a_pass)),
        ("sensitivity", rounds * trials * a_pass),
        ("plan", rounds * len(members) * repair if len(members) > 1 else 0.0),
        ("repair", rounds * repair),
        ("recover", recipe.recovery.epochs * len(splits.train) * TRAINING_STEP * pace.forward_s),
        ("evidence", EVIDENCE * a_pass + 1.5 if recipe.evidence.page else 0.0),
        ("export", EXPORT_SECONDS + EXPORT_SECONDS_A_LAYER * pace.layers),
        ("accuracy", 2 * len(splits.test) * pace.forward_s),
        (
            "latency",
            sum(
                max(LATENCY_SECONDS, RUNS_TIMED * batch * pace.forward_s)
                for batch in recipe.measurement.measured_batches
            ),
        ),
    ]
    return rows


def _ranking_seconds(rank_by: str, a_pass: float) -> float | None:
    if rank_by in QUICK_RANKERS:
        return FORWARD_AND_BACKWARD * a_pass
    members = members_of(rank_by)
    return 0.0 if all(get_ranker(name).needs == "weights" for name in members) else None


def _memory(inputs: Inputs, pace: _Pace) -> int:
    """Peak memory: the current memory of this process, decoded pixels, and the larger of measuring and training."""
    recipe = inputs.recipe
    measuring = min(MEMORY_BYTES, LIVE_MAPS * pace.largest * len(inputs.calibration))
    training = 3 * recipe.recovery.batch_size * pace.all_maps if recipe.recovery.epochs else 0
    weights: int = sum(value.numel() * value.element_size() for value in inputs.network.module.state_dict().values())
    return int(_resident() + max(measuring, training) + 4 * weights)


def _resident() -> int:
    """The peak memory of this process in bytes; 0 if the system does not report it."""
    try:
        import resource
    except ImportError:
        return 0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used if sys.platform == "darwin" else 1024 * used)
