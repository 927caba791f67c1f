"""The files of a run folder: their names, and how they are written."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.files import replacing, sha256_file, write_text
from ..explain.picnn.membership import Membership
from ..explain.scores import KernelScores
from ..export.evidence.cluster_pictures import draw_membership
from ..export.evidence.page import EVIDENCE_PAGE
from ..export.onnx.precision import PrecisionFile, file_name
from ..export.report.rendering import to_html, to_markdown
from ..export.report.report import REPORT_FILES, write_report
from ..export.settings import PRECISIONS
from ..network.network import Network
from ..prune import surgery
from ..prune.plan import PruningPlan
from ..prune.widths.sensitivity import Sensitivity
from .recipe.recipe import Recipe
from .recipe.rerun_command import command_of

RECIPE_FILE = "recipe.toml"
SCORES_FILE, SENSITIVITY_FILE = "scores.safetensors", "sensitivity.json"
MEMBERSHIP_FILE, MEMBERSHIP_PICTURE = "membership.safetensors", "membership.png"
RECOVERY_FILE = "recovery.json"
BASELINE_ONNX, PRUNED_ONNX = "baseline.onnx", "model.onnx"


def stages_folder(out: Path, command: str = "stages") -> Path:
    """The folder with the stages of a run or of a single command."""
    return out / ".secateur" / command


def write_recipe(recipe: Recipe, out: Path) -> None:
    """Write the resolved recipe."""
    write_text(out / RECIPE_FILE, recipe.to_toml())


def write_scores(scores: KernelScores, sensitivity: Sensitivity | None, out: Path) -> None:
    """Write scores and sensitivities; without sensitivities, those of an earlier run are removed."""
    scores.save(out / SCORES_FILE)
    if sensitivity is None:
        (out / SENSITIVITY_FILE).unlink(missing_ok=True)
    else:
        sensitivity.save(out / SENSITIVITY_FILE)


def write_network(network: Network, plan: PruningPlan, membership: Membership | None, out: Path) -> None:
    """Write the pruned network with its plan and, after fine-tuning with PICNN's pathway, its membership.

    The membership of an earlier network and the report of an earlier recovery are removed.
    """
    surgery.save(network, plan, out)
    write_membership(membership, out)


def write_membership(membership: Membership | None, out: Path) -> None:
    """Write a membership as a file and a picture; without one, those of an earlier network are removed."""
    (out / RECOVERY_FILE).unlink(missing_ok=True)
    if membership is None:
        (out / MEMBERSHIP_FILE).unlink(missing_ok=True)
        (out / MEMBERSHIP_PICTURE).unlink(missing_ok=True)
        return
    membership.save(out / MEMBERSHIP_FILE)
    draw_membership(membership, out / MEMBERSHIP_PICTURE)


def forget_reports(report: Mapping[str, Any], out: Path) -> None:
    """Remove the report files of an earlier run, after checking that the new report can be written.

    Raises:
        UnicodeEncodeError: a name in the report is not UTF-8.
    """
    command = command_of(report["recipe"])
    (to_markdown(report, command) + to_html(report, command)).encode("utf-8")
    for name in REPORT_FILES:
        (out / name).unlink(missing_ok=True)


def write_files(files: Iterable[PrecisionFile], out: Path) -> None:
    """Copy the ONNX files atomically; precisions of an earlier run, which are of another network, are removed.

    Raises:
        InputError: a file changed while it was copied.
    """
    for stale in (file_name(name, lower) for name in (BASELINE_ONNX, PRUNED_ONNX) for lower in PRECISIONS[1:]):
        (out / stale).unlink(missing_ok=True)
    for file in files:
        _copy(file.path, out / file.path.name)
        if sha256_file(out / file.path.name) != file.sha256:
            raise InputError(
                f"{out / file.path.name} changed while it was written, perhaps by another program. Run again with --resume."
            )


def write_reports(report: Mapping[str, Any], out: Path) -> None:
    """Write the report in all its formats."""
    write_report(report, out, command_of(report["recipe"]))


def write_page(page: Path | None, out: Path) -> None:
    """Copy the evidence page; without one, that of an earlier run is removed."""
    (out / EVIDENCE_PAGE).unlink(missing_ok=True)
    if page is not None:
        _copy(page, out / EVIDENCE_PAGE)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
