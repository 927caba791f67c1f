"""``secateur prune`` and ``secateur recover``: the cut, the repair and the fine-tuning."""

from pathlib import Path

from .app import command, observed
from .options import Device, Epochs, Flip, LearningRate, Out, PathwayName, Quiet, Repair, chosen_recipe


@command("prune")
def prune_command(
    repair: Repair = None,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    flip: Flip = None,
    pathway: PathwayName = None,
    out: Out = Path("secateur-run"),
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Prune by the plan in the run folder, repair and fine-tune: writes model.safetensors."""
    settings = chosen_recipe(locals(), folder=out)
    from ..pipeline.single_commands import prune_into

    console, observer = observed(quiet)
    found = prune_into(settings, out, observer)
    lines = []
    if found.history is not None:
        best = found.history.epochs[found.history.best]
        accuracy = f"{100 * best.validation_accuracy:.2f}%"
        lines.append(f"validation {found.measure} {accuracy} (epoch {found.history.best})")
    before, after = found.plan.before, found.plan.after
    shares = (after.macs / before.macs, after.parameters / before.parameters)
    lines.append(f"left: {100 * shares[0]:.1f}% of the MACs, {100 * shares[1]:.1f}% of the parameters")
    for line in (*lines, f"model: {found.path}"):
        console.print(line, soft_wrap=True, highlight=False)


@command("recover")
def recover_command(
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    flip: Flip = None,
    pathway: PathwayName = None,
    out: Out = Path("secateur-run"),
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune the pruned network in the run folder: writes model.safetensors again, and recovery.json.

    An interrupted recovery is resumed by running the same command again.
    """
    settings = chosen_recipe(locals(), folder=out)
    from ..export.report.tables import pathway_rows
    from ..pipeline.single_commands import recover_into
    from .terminal import show_pathways

    console, observer = observed(quiet)
    found = recover_into(settings, out, observer)
    show_pathways(console, pathway_rows(found.pathways))
    for path in found.files:
        console.print(str(path), soft_wrap=True, highlight=False)
