"""The main job: prune, export, measure and report into a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ExitCode
from ..common.files import locked_folder
from ..common.progress import Observer
from ..explain.ranking import members_of
from ..export.report.content import read_report
from ..export.report.release import check_images, check_machine
from ..export.runtime.provider_choice import ProviderChoice, choose_provider
from .deliver import deliver
from .inputs import Inputs, load_run
from .locks import check_reachable, report_locks
from .recipe.recipe import Recipe
from .report import Outcome, assemble_report
from .run_folder import stages_folder
from .stages.budget import prune_to_budget
from .stages.candidates import measure_recovery
from .stages.evidence_page import write_evidence
from .stages.latency_budget import time_layers, with_times
from .stages.ranking import find_channels, rank
from .stages.recovering import check_pathway
from .stages.shipped_files import export_files, measure_files
from .stages.store import StageStore
from .stages.time_of_plan import time_plan
from .stages.torch_times import time_in_torch


@dataclass(frozen=True)
class RunResult:
    """The folder of a run, its report, and the exit code from its gates."""

    folder: Path
    report: Mapping[str, Any]
    exit_code: ExitCode


@dataclass(frozen=True)
class Request:
    """The chosen provider, and the report of the release to compare with."""

    provider: ProviderChoice
    release: Mapping[str, Any] | None


def prune_and_export(recipe: Recipe, out: Path, *, resume: bool = False, observer: Observer | None = None) -> RunResult:
    """The main job: explain, plan, cut, repair, fine-tune, export, measure and report into ``out``.

    Files of an earlier run are replaced only when the new ones are complete. With ``resume``, finished stages with the same
    inputs are loaded from the run folder.

    Raises:
        BudgetError: no plan can reach the budget, which is known before any kernel is ranked.
        SecateurError: the run failed, with the exit code of its class; nothing in ``out`` has changed.

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
    request = check_request(recipe)
    provider = request.provider.provider
    with locked_folder(out):
        store = StageStore(stages_folder(out), resume, observer)
        inputs = load_run(recipe, store)
        check_release(request, inputs, store.observer)
        whole = find_channels(inputs, store)
        report_locks(whole, recipe.budget, store.observer)
        timed = time_layers(inputs, whole, provider, store)
        whole = with_times(whole, timed)
        locks = check_reachable(whole, recipe.budget, store.observer)
        ranked = rank(inputs, whole, store)
        pruned = prune_to_budget(inputs, ranked, timed, provider, store)
        page = write_evidence(inputs, ranked, pruned.candidate.plan, store)
        files = export_files(inputs, pruned.candidate, provider, store)
        time = time_plan(inputs, ranked, pruned.candidate.plan, files, provider, store)
        figures = measure_files(inputs, files, pruned.attempts, provider, store)
        in_torch = time_in_torch(inputs, pruned.candidate, files, figures.conditions, provider, store)
        pathways = measure_recovery(inputs, pruned.candidate, store)
        outcome = Outcome(
            ranked,
            locks,
            pruned,
            files,
            figures,
            pathways,
            request.provider,
            store.timings,
            request.release,
            in_torch,
            time,
        )
        report = assemble_report(inputs, outcome)
        deliver(out, inputs, ranked, pruned.candidate, files, page, report)
    return RunResult(out, report, ExitCode(report["exit_code"]))


def check_request(recipe: Recipe) -> Request:
    """Run all checks that need no model and no data.

    Raises:
        UsageError: the ranker is unknown, or the pathway cannot be trained.
        MachineError: the provider does not run here, or the release was measured on another machine.
        InputError: the report of the release cannot be read.
    """
    provider = choose_provider(recipe.gates.require_provider or recipe.measurement.provider)
    members_of(recipe.ranking.rank_by)
    check_pathway(recipe)
    if not recipe.release.baseline:
        return Request(provider, None)
    release = read_report(Path(recipe.release.baseline))
    check_machine(release, recipe.release, provider.provider)
    return Request(provider, release)


def check_release(request: Request, inputs: Inputs, observer: Observer) -> None:
    """Check that a release was measured on the same test images, and report the provider's note.

    Raises:
        InputError: it was measured on other images.
    """
    if request.release is not None:
        test = inputs.splits.test
        against = "labels" if test.labelled else "original"
        check_images(
            request.release, inputs.recipe.release, inputs.content["test"], inputs.splits.listing_sha256, against
        )
    if request.provider.note:
        observer.say(request.provider.note)
