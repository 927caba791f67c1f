"""The main job: prune, export, measure and report into a run folder."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ExitCode, InputError
from ..common.files import locked_folder, read_json, replacing, sha256_file, sha256_json, write_json, write_text
from ..common.progress import Observer, Progress
from ..explain.ranking import members_of
from ..export.evidence.page import EVIDENCE_PAGE
from ..export.measure.accuracy import measure_drop
from ..export.measure.variants import Attempt, candidate_rows, variant_rows
from ..export.onnx.precision import file_name
from ..export.report.release import check_images, check_machine
from ..export.report.report import REPORT_FILES, read_report, to_html, to_markdown, write_report
from ..export.runtime.session import choose_provider
from ..export.settings import PRECISIONS
from ..prune import surgery
from .evidence_page import write_run_evidence
from .inputs import Inputs, load_inputs
from .latency_budget import prune_to_latency
from .measurement import BASELINE_ONNX, PRUNED_ONNX, Files, export_attempt, export_files, measure_files, not_shipped
from .operations import SCORES_FILE, SENSITIVITY_FILE
from .pathways import check_pathway, measure_pathways, write_membership
from .pruner import Candidate, Pruner, shipped_cost
from .recipe import Recipe
from .report import Measured, assemble_report, locked
from .rerun_command import command_of
from .stage_store import Stages

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

    Examples:
        >>> import secateur
        >>> from pathlib import Path
        >>> recipe = secateur.Recipe().override(model="digits", macs=0.5, repair="bn", epochs=0, batches=(1,))
        >>> result = secateur.prune_and_export(recipe, Path("slim"))
        >>> int(result.exit_code), result.report["drop"]["points"] < 5
        (0, True)
        >>> sorted(path.name for path in Path("slim").glob("*.onnx"))
        ['baseline.onnx', 'model.onnx']
    """
    observer = observer or Observer()
    provider = choose_provider(recipe.gates.require_provider or recipe.measurement.provider)
    members_of(recipe.ranking.rank_by)
    check_pathway(recipe)
    release = read_report(Path(recipe.release.baseline)) if recipe.release.baseline else None
    if release is not None:
        check_machine(release, recipe.release, provider.provider)
    with locked_folder(out):
        stages = Stages(out / ".secateur" / "stages", resume, observer)
        with stages.timed("load") as progress:
            inputs = load_inputs(recipe, progress)
        if release is not None:
            test = inputs.splits.test
            against = "labels" if test.labelled else "original"
            check_images(release, recipe.release, inputs.content["test"], inputs.splits.listing_sha256, against)
        for note in (*inputs.notes, *filter(None, [provider.note])):
            observer.say(note)
        pruner = Pruner(inputs, stages)
        for name, reason in locked(pruner.groups):
            observer.say(f"{name} stays whole: {reason}")
        search = latency = None
        attempts: list[Attempt] = []
        if recipe.budget.latency is None:
            pruned, search = pruner.prune(lambda tried, trial: attempts.append(export_attempt(tried, trial, stages)))
        else:
            pruned, latency = prune_to_latency(pruner, stages, provider.provider)
        if missed := search.missed if search else latency.missed if latency else pruned.plan.missed:
            observer.say(f"Budget missed: {missed}")
        evidence = _evidence(inputs, pruner, pruned, stages)
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
            latency=latency,
            files=files.models,
            accuracies=accuracies,
            drop=measure_drop(*accuracies, inputs.splits.test, recipe.seed),
            comparisons=[rows[files.pruned - 1] for rows in figures.comparisons.values()],
            provider=provider,
            timings=stages.timings,
            pathways=pathways,
            release=release,
            variants=variant_rows(files.variants, figures, inputs.splits.test, recipe.seed),
            candidates=candidate_rows(files.variants, attempts, figures, recipe.measurement.latency_batch),
            conditions=figures.conditions,
        )
        report = assemble_report(inputs, measured)
        _deliver(out, inputs, pruner, pruned, files, report)
        _deliver_evidence(evidence, out)
        return RunResult(out, report, ExitCode(report["exit_code"]))


def _evidence(inputs: Inputs, pruner: Pruner, pruned: Candidate, stages: Stages) -> Path | None:
    """The evidence page in its stage's folder; None where it is not wanted."""
    if not inputs.recipe.evidence.page:
        return None
    return stages.run(
        "evidence",
        {
            "ranked": pruner.first.key,
            "plan": sha256_json(pruned.plan.to_json()),
            "validation": inputs.content["validation"],
            "settings": [asdict(inputs.recipe.evidence), asdict(inputs.recipe.picnn)],
        },
        lambda folder, progress: write_run_evidence(
            inputs, pruner.first.scores, pruned.plan, folder / EVIDENCE_PAGE, progress
        ),
        lambda folder: folder / EVIDENCE_PAGE,
    )


def _deliver_evidence(page: Path | None, out: Path) -> None:
    (out / EVIDENCE_PAGE).unlink(missing_ok=True)
    if page is not None:
        with replacing(out / EVIDENCE_PAGE) as temporary:
            shutil.copyfile(page, temporary)


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
    command = command_of(report["recipe"])
    # What cannot be written is found before anything is replaced.
    text = to_markdown(report, command) + to_html(report, command)
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
    write_report(report, out, command)
