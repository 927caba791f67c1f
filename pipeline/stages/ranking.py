"""The stages that rank a network's kernels: channels and costs, scores, and measured sensitivities."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.environment import code_sha256, installed_packages
from ...common.errors import UsageError
from ...explain.ranking import members_of, rank_kernels
from ...explain.scores import KernelScores, RankingTask
from ...network.channels.follow import find_groups
from ...network.channels.group import ChannelGroup
from ...network.network import Network
from ...prune.cost import CostModel, measure_cost
from ...prune.planning import obstacle
from ...prune.widths.ranking_choice import Choice, choices, measure_orders
from ...prune.widths.sensitivity import Sensitivity
from ..inputs import Inputs
from ..run_folder import SCORES_FILE, SENSITIVITY_FILE
from .store import Stage, StageStore, Workplace


@dataclass(frozen=True)
class Channels:
    """A network with its groups of coupled channels and its costs; ``origin`` is a hash of everything that determines the
    network.
    """

    network: Network
    groups: tuple[ChannelGroup, ...]
    costs: CostModel
    origin: str


@dataclass(frozen=True)
class Ranked:
    """A network with scores of its kernels and, if the recipe needs them, sensitivities; ``key`` hashes everything that
    determines them.
    """

    channels: Channels
    scores: KernelScores
    sensitivity: Sensitivity | None
    key: str

    @property
    def choices(self) -> dict[str, Choice]:
        """The orders that a plan may follow: one ranking, or the orders of a consensus."""
        return choices(self.channels.groups, self.scores, self.sensitivity)


def channels_of(network: Network, origin: str) -> Channels:
    """The groups of coupled channels and the costs of a network, measured."""
    groups = find_groups(network.module, network.example(2))
    return Channels(network, groups, measure_cost(network).along(groups), origin)


def find_channels(inputs: Inputs, store: StageStore) -> Channels:
    """The groups and costs of the original.

    Raises:
        UsageError: no unit can be removed at the recipe's alignment.
    """
    with store.timed("channels"):
        found = channels_of(inputs.network, inputs.fingerprint)
    check_cuttable(found, inputs)
    return found


def check_cuttable(found: Channels, inputs: Inputs) -> None:
    """Raise a usage error where no group can lose a unit at the recipe's alignment."""
    if reason := obstacle(found.groups, inputs.recipe.budget.round_to):
        raise UsageError(reason)


def rank(inputs: Inputs, channels: Channels, store: StageStore, label: str = "") -> Ranked:
    """Score every kernel and, for an allocation by sensitivity, measure the loss of each group at each width."""
    explained = explain_stage(inputs, channels, label)
    return with_sensitivity(inputs, channels, store.run(explained), explained.key, store, label)


def with_sensitivity(
    inputs: Inputs, channels: Channels, scores: KernelScores, key: str, store: StageStore, label: str = ""
) -> Ranked:
    """Existing scores with the sensitivities that the recipe needs. ``key`` is a hash of everything that determines the
    scores.
    """
    if inputs.recipe.budget.allocation != "sensitivity":
        return Ranked(channels, scores, None, key)
    stage = sensitivity_stage(inputs, channels, scores, key, label)
    return Ranked(channels, scores, store.run(stage), stage.key)


def explain_stage(inputs: Inputs, channels: Channels, label: str = "") -> Stage[KernelScores]:
    """Score every kernel by the recipe's ranker on the calibration images."""
    recipe = inputs.recipe

    def work(place: Workplace) -> None:
        task = RankingTask(
            channels.network, inputs.calibration, recipe.seed, inputs.device, place.progress, place.scratch,
            recipe.agic, recipe.picnn,
        )  # fmt: skip
        rank_kernels(task, recipe.ranking.rank_by).save(place.folder / SCORES_FILE)

    return Stage(
        f"explain{label}",
        ranking_inputs(inputs, channels.origin),
        work,
        lambda folder: KernelScores.load(folder / SCORES_FILE),
    )


def sensitivity_stage(
    inputs: Inputs, channels: Channels, scores: KernelScores, key: str, label: str = ""
) -> Stage[Sensitivity]:
    """Measure the losses on the calibration images; for a consensus, by the best of its orders."""

    def work(place: Workplace) -> None:
        measure_orders(
            channels.network, channels.groups, scores, inputs.calibration, device=inputs.device, progress=place.progress
        ).save(place.folder / SENSITIVITY_FILE)

    def load(folder: Path) -> Sensitivity:
        return Sensitivity.load(folder / SENSITIVITY_FILE)

    return Stage(f"sensitivity{label}", {"explain": key}, work, load)


def ranking_inputs(inputs: Inputs, origin: str) -> dict[str, Any]:
    """Everything that determines the scores of a network's kernels; ``origin`` is the hash of the network itself."""
    recipe = inputs.recipe
    members = members_of(recipe.ranking.rank_by)
    return {
        "network": origin,
        "images": inputs.content["calibration"],
        "calibration": recipe.data.calibration,
        "ranking": asdict(recipe.ranking),
        "agic": asdict(recipe.agic) if "agic" in members else None,
        "picnn": asdict(recipe.picnn) if "picnn" in members else None,
        **circumstances(inputs),
    }


def circumstances(inputs: Inputs) -> dict[str, Any]:
    """What determines every computation of a run besides its own settings."""
    return {
        "preprocessing": asdict(inputs.network.preprocessing),
        "seed": inputs.recipe.seed,
        "device": inputs.device,
        "packages": installed_packages(),
        "code": code_sha256(),
    }
