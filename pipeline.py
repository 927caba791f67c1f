"""The main job: prune, export, measure and report into a run folder."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import ExitCode, InputError
from .explain.ranking import members_of
from .export.accuracy import measure_drop
from .export.assembly import Measured, assemble_report, locked
from .export.precision import file_name
from .export.report import REPORT_FILES, to_html, to_markdown, write_report
from .export.runtime import choose_provider
from .export.variants import Attempt, candidate_rows, variant_rows
from .files import locked_folder, read_json, replacing, sha256_file, write_json, write_text
from .inputs import Inputs, load_inputs
from .measurement import BASELINE_ONNX as BASELINE_ONNX
from .measurement import PRUNED_ONNX as PRUNED_ONNX
from .measurement import Files, export_attempt, export_files, measure_files, not_shipped
from .pathways import check_pathway, measure_pathways, write_membership
from .prune import surgery
from .pruner import SCORES_FILE, SENSITIVITY_FILE, Candidate, Pruner, shipped_cost
from .recipe import Recipe
from .sections import PRECISIONS
from .stages import Observer, Progress, Stages

RECIPE_FILE = "recipe.toml"


@dataclass(frozen=True)
class RunResult:
    """Where a run wrote, its report, and the exit code its gates give."""

    folder: Path
    report: Mapping[str, Any]
    exit_code: ExitCode


def prune_and_export(recipe: Recipe, out: Path, *, resume: bool = False, observer: Observer | None = None) -> RunResult:
    """The main job: explain, plan, cut, repair, fine-tune, export, measure and report into ``out``.

    Files of an earlier run are replaced only when the new ones are complete. With ``resume`` stages whose inputs are the
    same as before are taken from the run folder.

    Raises:
        SecateurError: of the kind whose exit code fits; nothing in ``out`` has changed then.
    """
    observer = observer or Observer()
    provider = choose_provider(recipe.gates.require_provider or recipe.measurement.provider)
    members_of(recipe.ranking.rank_by)
    check_pathway(recipe)
    with locked_folder(out):
        stages = Stages(out / ".secateur" / "stages", resume, observer)
        with stages.timed("load") as progress:
            inputs = load_inputs(recipe, progress)
        for note in (*inputs.notes, *filter(None, [provider.note])):
            observer.say(note)
        pruner = Pruner(inputs, stages)
        for name, reason in locked(pruner.groups):
            observer.say(f"{name} stays whole: {reason}")
        attempts: list[Attempt] = []
        pruned, search = pruner.prune(lambda tried, trial: attempts.append(export_attempt(tried, trial, stages)))
        if missed := search.missed if search else pruned.plan.missed:
            observer.say(f"Budget missed: {missed}")
        files = export_files(inputs, pruned, pruned.plan.before.macs, provider.provider, stages)
        attempts = not_shipped(attempts, search)
        figures = measure_files(inputs, files, attempts, provider.provider, stages)
        accuracies = figures.test[0], figures.test[files.pruned]
        pathways = _pathways(inputs, pruned, stages)
        measured = Measured(
            plan=pruned.plan,
            costs=pruner.costs,
            shipped=shipped_cost(pruned),
            scores=pruner.first.scores,
            repairs=pruned.repairs,
            history=pruned.history,
            search=search,
            files=files.models,
            accuracies=accuracies,
            drop=measure_drop(*accuracies, inputs.splits.test, recipe.seed),
            comparisons=[rows[files.pruned - 1] for rows in figures.comparisons.values()],
            provider=provider,
            timings=stages.timings,
            pathways=pathways,
            variants=variant_rows(inputs, files.variants, figures),
            candidates=candidate_rows(inputs, files.variants, attempts, figures),
            conditions=figures.conditions,
        )
        report = assemble_report(inputs, measured)
        _deliver(out, inputs, pruner, pruned, files, report)
        return RunResult(out, report, ExitCode(report["exit_code"]))


def _pathways(inputs: Inputs, pruned: Candidate, stages: Stages) -> list[dict[str, Any]] | None:
    """How PICNN's recovery changed what filters tell of classes; None where there was none."""
    membership = pruned.membership
    if membership is None:
        return None

    def work(folder: Path, progress: Progress) -> None:
        rows = measure_pathways(inputs, pruned.repaired, (pruned.network, membership), progress)
        write_json(folder / "pathways.json", rows)

    return stages.run(
        "pathways",
        {"network": pruned.key, "picnn": asdict(inputs.recipe.picnn), "images": inputs.content},
        work,
        lambda folder: list(read_json(folder / "pathways.json")),
    )


def _deliver(
    out: Path,
    inputs: Inputs,
    pruner: Pruner,
    pruned: Candidate,
    files: Files,
    report: Mapping[str, Any],
) -> None:
    """Put the finished files into the run folder, each whole."""
    text = to_markdown(report) + to_html(report)  # whatever cannot be written is met before anything is replaced
    text.encode("utf-8")
    for name in REPORT_FILES:
        (out / name).unlink(missing_ok=True)
    write_text(out / RECIPE_FILE, inputs.recipe.to_toml())
    pruner.first.scores.save(out / SCORES_FILE)
    if pruner.first.sensitivity is None:
        (out / SENSITIVITY_FILE).unlink(missing_ok=True)
    else:
        pruner.first.sensitivity.save(out / SENSITIVITY_FILE)
    surgery.save(pruned.network, pruned.plan, out)
    write_membership(pruned.membership, out)
    for stale in (file_name(name, lower) for name in (BASELINE_ONNX, PRUNED_ONNX) for lower in PRECISIONS[1:]):
        (out / stale).unlink(missing_ok=True)  # a precision of an earlier run is another network's
    for file in (variant.file for variant in files.variants):
        with replacing(out / file.path.name) as temporary:
            shutil.copyfile(file.path, temporary)
        if sha256_file(out / file.path.name) != file.sha256:
            raise InputError(f"{out / file.path.name} was changed while it was written. Is another program using it?")
    write_report(report, out)
