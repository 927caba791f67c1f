"""Deliver the finished files of a run into its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .inputs import Inputs
from .run_folder import (
    forget_reports,
    write_files,
    write_network,
    write_page,
    write_recipe,
    write_reports,
    write_scores,
)
from .stages.candidates import Candidate
from .stages.ranking import Ranked
from .stages.shipped_files import Files


def deliver(
    out: Path,
    inputs: Inputs,
    ranked: Ranked,
    candidate: Candidate,
    files: Files,
    page: Path | None,
    report: Mapping[str, Any],
) -> None:
    """Write the finished files into the run folder atomically; the report comes last, so that it never describes other
    files.
    """
    forget_reports(report, out)
    write_recipe(inputs.recipe, out)
    write_scores(ranked.scores, ranked.sensitivity, out)
    write_network(candidate.network, candidate.plan, candidate.membership, out)
    write_files([variant.file for variant in files.variants], out)
    write_reports(report, out)
    write_page(page, out)
