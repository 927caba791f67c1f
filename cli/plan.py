"""``secateur plan``: plan which kernels to remove."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.errors import ExitCode, UsageError
from .app import command, observed, print_json
from .options import (
    OUTPUT,
    Allocation,
    BestEffort,
    Json,
    Latency,
    LatencyBatch,
    Macs,
    Out,
    Params,
    Provider,
    Quiet,
    RoundTo,
    Size,
    Speedup,
    TimeModel,
    chosen_recipe,
)

if TYPE_CHECKING:
    from ..prune.plan import PruningPlan

Row = tuple[str, ...]


@command("plan")
def plan_command(
    speedup: Speedup = None,
    latency: Latency = None,
    macs: Macs = None,
    params: Params = None,
    size: Size = None,
    round_to: RoundTo = None,
    allocation: Allocation = None,
    time_model: TimeModel = None,
    best_effort: BestEffort = None,
    latency_batch: LatencyBatch = None,
    provider: Provider = None,
    out: Out = Path("secateur-run"),
    explain: Annotated[
        str | None,
        typer.Option(help="Explain why each kernel of this layer stays or goes.", rich_help_panel=OUTPUT),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Plan which kernels to remove by the scores in the run folder: writes plan.json.

    The units that each group removes can be edited in plan.json; `secateur prune` follows it.
    """
    settings = chosen_recipe(locals(), folder=out)
    from ..pipeline.single_commands import explain_plan, plan_into
    from .terminal import show_table

    console, observer = observed(quiet, json)
    if explain is not None:
        if any(
            option is not None
            for option in (speedup, latency, macs, params, size, round_to, allocation, time_model, best_effort)
        ):
            raise UsageError("--explain reads the plan in the run folder. Leave out the options that make a plan.")
        reasons = explain_plan(settings, out, explain)
        if json:
            keys = ("kernel", "score", "stays", "why")
            print_json([dict(zip(keys, row, strict=True)) for row in reasons])
            return 0
        rows = [
            (str(kernel), "–" if score is None else f"{score:.4g}", "stays" if stays else "goes", why)
            for kernel, score, stays, why in reasons
        ]
        show_table(console, ("kernel", "score", "verdict", "why"), rows)
        return 0
    plan = plan_into(settings, out, observer)
    if json:
        print_json(plan.to_json())
    else:
        show_table(console, ("group", "units", "kept", "step", "saves MACs", "decided by"), group_rows(plan))
        console.print(f"plan: {out / 'plan.json'}", soft_wrap=True, highlight=False)
    if plan.missed:
        best_effort = settings.budget.best_effort
        typer.echo(f"secateur: budget missed{' (best effort)' if best_effort else ''}: {plan.missed}", err=True)
        return int(ExitCode.OK if best_effort else ExitCode.GATE_FAILED)
    return 0


def group_rows(plan: "PruningPlan") -> list[Row]:
    """A row for each group."""
    return [
        (
            group.name,
            str(group.units),
            str(group.kept),
            str(group.step),
            f"{100 * group.saves.macs / plan.before.macs:.1f}%",
            group.locked or group.decided_by,
        )
        for group in plan.groups
    ]
