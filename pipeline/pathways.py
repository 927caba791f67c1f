"""PICNN's pathway in a run: asked for rightly, and measured before and after the recovery."""

from pathlib import Path
from typing import Any

from ..common.errors import UsageError
from ..common.progress import Progress, in_parts, silent
from ..explain.picnn.entanglement import measure_entanglement
from ..explain.picnn.membership import Membership, fit_membership, with_membership
from ..export.evidence.cluster_pictures import draw_membership
from ..network.network import Network
from .inputs import Inputs
from .operations import MEMBERSHIP_FILE
from .recipe import Recipe

MEMBERSHIP_PICTURE, RECOVERY_FILE = "membership.png", "recovery.json"


def write_membership(membership: Membership | None, out: Path) -> None:
    """The membership of the network in a folder, as a file and a picture; without one, those of a network before it go.

    What an earlier recovery told goes too: the network beside it is another now.
    """
    (out / RECOVERY_FILE).unlink(missing_ok=True)
    if membership is None:
        (out / MEMBERSHIP_FILE).unlink(missing_ok=True)
        (out / MEMBERSHIP_PICTURE).unlink(missing_ok=True)
        return
    membership.save(out / MEMBERSHIP_FILE)
    draw_membership(membership, out / MEMBERSHIP_PICTURE)


def check_pathway(recipe: Recipe) -> None:
    """A pathway is trained in the layers that are there, or not asked for.

    Raises:
        UsageError: it is asked for without an epoch of fine-tuning, or with a new layer, which a pruned network cannot take.
    """
    if recipe.recovery.pathway != "none" and not recipe.recovery.epochs:
        raise UsageError(f"--pathway {recipe.recovery.pathway} trains the network: give --epochs of at least 1.")
    if recipe.recovery.pathway != "none" and (recipe.picnn.filters or recipe.picnn.filters_per_class):
        raise UsageError(
            "[picnn] filters puts a new layer into a network, which a pruned one cannot take; `secateur train-picnn` puts it "
            "into the original. Take it out of the recipe."
        )


def measure_pathways(
    inputs: Inputs,
    earlier: Network,
    recovered: tuple[Network, Membership],
    progress: Progress = silent,
    state: str = "repaired",
) -> list[dict[str, Any]]:
    """How entangled filters and classes are in the original, before the recovery and after it: a row for each.

    Membership of the first two is learned post hoc on calibration images; the third has the one it was trained with. All are
    measured on test images.
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
