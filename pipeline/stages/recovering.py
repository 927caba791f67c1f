"""The stages of fine-tuning: the recovered network, and the change of PICNN's measures with its pathway."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ...common.files import read_json, write_json
from ...common.progress import Progress, in_parts, silent
from ...explain.picnn.entanglement import measure_entanglement
from ...explain.picnn.membership import Membership, fit_membership, with_membership
from ...network.network import Network
from ...network.training import History
from ...prune import surgery
from ...prune.plan import PruningPlan
from ...prune.repair.fine_tune import recover, recover_with_pathway
from ..inputs import Inputs
from ..recipe.recipe import Recipe
from ..run_folder import MEMBERSHIP_FILE
from .repairing import load_stage_network
from .store import Stage, Workplace


@dataclass(frozen=True)
class Recovered:
    """A fine-tuned network, its training, and the membership of a training with PICNN's pathway."""

    network: Network
    history: History
    membership: Membership | None


def check_pathway(recipe: Recipe) -> None:
    """Check that the pathway, if there is one, can be trained.

    Raises:
        UsageError: there are no epochs of fine-tuning, or a new layer is set, which cannot be added to a pruned network.
    """
    if recipe.recovery.pathway == "none":
        return
    if not recipe.recovery.epochs:
        raise UsageError(f"--pathway {recipe.recovery.pathway} needs training. Give --epochs of at least 1.")
    if recipe.picnn.filters or recipe.picnn.filters_per_class:
        raise UsageError(
            "[picnn] filters adds a new layer, which is not possible in a pruned network; `secateur train-picnn` adds it "
            "to the original. Remove filters from the recipe."
        )


def recover_stage(
    inputs: Inputs, repaired: Network, plan: PruningPlan, origin: str, label: str = ""
) -> Stage[Recovered]:
    """Fine-tune a pruned network by the recipe; the best epoch on validation images is kept.

    Args:
        origin: a hash of everything that determines the pruned network.
    """
    recipe = inputs.recipe
    with_pathway = recipe.recovery.pathway == "picnn"

    def work(place: Workplace) -> None:
        tuned = fine_tune(inputs, repaired, place.progress, place.scratch / "training.pt")
        surgery.save(tuned.network, plan, place.folder)
        if tuned.membership is not None:
            tuned.membership.save(place.folder / MEMBERSHIP_FILE)
        write_json(place.folder / "history.json", tuned.history.to_json())

    def load(folder: Path) -> Recovered:
        return Recovered(
            load_stage_network(folder, recipe),
            History.from_json(read_json(folder / "history.json")),
            Membership.load(folder / MEMBERSHIP_FILE) if with_pathway else None,
        )

    return Stage(
        f"recover{label}",
        {
            "repair": origin,
            "recovery": asdict(recipe.recovery),
            "picnn": asdict(recipe.picnn) if with_pathway else None,
            "images": inputs.content["training"],
        },
        work,
        load,
    )


def fine_tune(inputs: Inputs, small: Network, progress: Progress = silent, checkpoint: Path | None = None) -> Recovered:
    """Fine-tune with distillation from the original, by the recipe.

    Args:
        checkpoint: a file that is written after every epoch, and resumed from if it exists.
    """
    recipe = inputs.recipe
    if recipe.recovery.pathway == "picnn":
        return Recovered(
            *recover_with_pathway(
                inputs.network,
                small,
                inputs.splits,
                recipe.recovery,
                recipe.picnn,
                seed=recipe.seed,
                device=inputs.device,
                progress=progress,
                checkpoint=checkpoint,
            )
        )
    network, history = recover(
        inputs.network,
        small,
        inputs.splits,
        recipe.recovery,
        seed=recipe.seed,
        device=inputs.device,
        progress=progress,
        checkpoint=checkpoint,
    )
    return Recovered(network, history, None)


def pathways_stage(
    inputs: Inputs, earlier: Network, recovered: tuple[Network, Membership], key: str
) -> Stage[list[dict[str, Any]]]:
    """The change of PICNN's measures by fine-tuning with its pathway.

    Args:
        key: a hash of everything that determines the recovered network.
    """

    def work(place: Workplace) -> None:
        rows = measure_pathways(inputs, earlier, recovered, place.progress)
        write_json(place.folder / "pathways.json", rows)

    return Stage(
        "pathways",
        {"network": key, "picnn": asdict(inputs.recipe.picnn), "images": dict(inputs.content)},
        work,
        lambda folder: list(read_json(folder / "pathways.json")),
    )


def measure_pathways(
    inputs: Inputs,
    earlier: Network,
    recovered: tuple[Network, Membership],
    progress: Progress = silent,
    state: str = "repaired",
) -> list[dict[str, Any]]:
    """The entanglement of filters and classes in the original, before the recovery and after it, one row for each.

    The membership of the first two is learned post hoc on calibration images; that of the third comes from its training. All
    are measured on test images.
    """
    recipe, test = inputs.recipe, inputs.splits.test
    part = in_parts(progress, ("original", 1), (state, 1), ("recovered", 1))
    rows = []
    for name, network in (("original", inputs.network), (state, earlier)):
        pathway, _ = fit_membership(
            network, inputs.calibration, recipe.picnn, seed=recipe.seed, device=inputs.device, progress=part(name)
        )
        found = measure_entanglement(pathway, test, seed=recipe.seed, device=inputs.device)
        rows.append({"state": name, "membership": "post hoc", **found.to_json()})
    pathway = with_membership(recovered[0], recipe.picnn, recovered[1], recipe.seed).to(inputs.device)
    found = measure_entanglement(pathway, test, seed=recipe.seed, device=inputs.device, progress=part("recovered"))
    return [*rows, {"state": "recovered", "membership": "trained", **found.to_json()}]
