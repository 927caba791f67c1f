"""A report's words and figures on time: how a budget of time was met, and what else is as fast."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..export.measure.latency import Comparison
from ..export.measure.paired_ratio import Ratio
from ..export.measure.variants import VariantFigures
from ..export.report.gates import BudgetCheck
from ..export.settings import MeasurementSettings
from ..prune.budget_search.by_latency import TOLERANCE, LatencyOutcome
from .stages.shipped_files import Files


def planned_speedup(files: Files, figures: VariantFigures, how: MeasurementSettings) -> Ratio | None:
    """The pruned network's speedup over the baseline, both in the precision that is planned, at the batch size of the gates."""
    rows, precision = figures.comparisons.get(how.latency_batch), how.planned_precision
    if rows is None:
        return None
    places = {variant.name: index for index, variant in enumerate(files.variants)}
    pruned = rows[places[f"pruned {precision}"] - 1].meant(how.latency_of)
    baseline = places[f"baseline {precision}"]
    return pruned if baseline == 0 else pruned.over(rows[baseline - 1].meant(how.latency_of))


def check_time(
    latency: LatencyOutcome, speedup: Ratio, files: Sequence[str], latency_of: str, best_effort: bool
) -> BudgetCheck:
    """The budget of time against the measured ``speedup``; ``files`` are the names of the pruned file and the baseline's."""
    found = latency.judged(1 / speedup.ratio, 1 / speedup.high, 1 / speedup.low)
    where = " on the device" if latency_of == "device" else ""
    meaning = (
        f"time{where} of {files[0]} over {files[1]} at batch {latency.table.about['batch']}, the surer of the try and the last "
        f"measurement, at most {100 * TOLERANCE:g}% above the limit"
    )
    return BudgetCheck(found, latency.search.asked, latency.search.missed(found), meaning, best_effort)


def time_to_json(outcome: LatencyOutcome | None, speedup: Ratio | None, latency_of: str) -> dict[str, Any] | None:
    """The requested, planned and tried latencies, and the one measured on the exported file."""
    if outcome is None or speedup is None:
        return None
    found = {"measured": 1 / speedup.ratio, "low": 1 / speedup.high, "high": 1 / speedup.low}
    return {**outcome.to_json(), "latency_of": latency_of, **found}


def exported_baseline(exported: Comparison | None, comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """The baseline as torch exports it: its time, and how many times as fast the clean baseline and the pruned file are."""
    if exported is None:
        return None
    pruned = next(row for row in comparisons if row.batch == exported.batch)
    same = Ratio(1.0, 1.0, 1.0)
    return {
        "batch": exported.batch,
        "median_ms": exported.pruned.median_ms,
        "clean_speedup": asdict(same.over(exported.ratio)),
        "pruned_speedup": asdict(pruned.ratio.over(exported.ratio)),
    }


def uncut_notes(rows: Sequence[Mapping[str, Any]], asked: float, how: MeasurementSettings) -> list[str]:
    """Of the ``variants`` of a report, those that are uncut, at least as fast as ``asked`` and lose less than the cut in fp32.

    ``asked`` is a speedup over the baseline in fp32. Nothing is said of the precision that was planned in.
    """
    batch = how.latency_batch
    pruned = next(row for row in rows if row["network"] == "pruned")
    found = []
    for row in rows:
        speedup = row["speedup"].get(str(batch))
        if row["network"] != "baseline" or speedup is None or row["precision"] in ("fp32", how.planned_precision):
            continue
        lost, cut = row["drop"]["points"], pruned["drop"]["points"]
        if speedup["ratio"] >= asked and lost <= cut:
            found.append(
                f"{row['file']}, which is not cut at all, is {speedup['ratio']:.2f} times as fast as the baseline at batch "
                f"{batch}, where {asked:.3g} was asked for, and loses {lost:.2f} points; {pruned['file']} loses {cut:.2f}. Cut "
                f"with --precision {row['precision']} to make it faster still."
            )
    return found
