"""Everything that a run measured, brought into the form of ``report.schema.json`` and judged by the recipe's gates."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.environment import describe_environment, installed_packages
from ..explain.registry import get_ranker
from ..explain.scores import KernelScores
from ..export.evidence.page import EVIDENCE_PAGE
from ..export.measure.accuracy import MEASURES, Accuracy, Drop, pack_correct
from ..export.measure.latency import Comparison
from ..export.measure.paired_ratio import Ratio
from ..export.onnx.model import OnnxModel
from ..export.report.gates import BudgetCheck, exit_code, judge
from ..export.report.release import judge_release
from ..export.report.report import SCHEMA_VERSION
from ..export.runtime.session import ProviderChoice
from ..network.channels.group import ChannelGroup
from ..network.channels.locks import HEAD_LOCK
from ..network.training import History
from ..prune.budget_search.by_drop import Search
from ..prune.budget_search.by_latency import TOLERANCE, LatencyOutcome
from ..prune.cost import Cost, CostModel
from ..prune.plan import GroupPlan, PruningPlan
from ..prune.repair.repair import RepairReport
from .inputs import Inputs


@dataclass(frozen=True)
class Measured:
    """What came out of a run, the baseline's first of two. ``costs`` are the original's, ``shipped`` the result's."""

    plan: PruningPlan
    costs: CostModel
    shipped: Cost
    scores: KernelScores
    repairs: Sequence[RepairReport]
    history: History | None
    search: Search | None
    latency: LatencyOutcome | None
    files: tuple[OnnxModel, OnnxModel]
    accuracies: tuple[Accuracy, Accuracy]
    drop: Drop
    comparisons: Sequence[Comparison]
    provider: ProviderChoice
    timings: Mapping[str, float]
    pathways: Sequence[Mapping[str, Any]] | None = None
    release: Mapping[str, Any] | None = None
    variants: Sequence[Mapping[str, Any]] = ()
    candidates: Sequence[Mapping[str, Any]] = ()
    conditions: Mapping[str, Any] | None = None


def assemble_report(inputs: Inputs, measured: Measured) -> dict[str, Any]:
    """The content of ``report.json``."""
    recipe, plan, comparisons = inputs.recipe, measured.plan, measured.comparisons
    baseline, pruned = measured.files
    before, after = plan.before, measured.shipped
    gated = next((row for row in comparisons if row.batch == recipe.measurement.latency_batch), None)
    against = "labels" if inputs.splits.test.labelled else "original"
    gates = judge(
        recipe.gates,
        budget=_budget(measured, gated.ratio if gated else None),
        drop=measured.drop,
        speedup=gated.ratio if gated else None,
        onnx_bytes=pruned.onnx_bytes,
        provider=measured.provider.provider,
        measure=MEASURES[against],
    )
    sides = {}
    for name, accuracy, cost, model in (
        ("baseline", measured.accuracies[0], before, baseline),
        ("pruned", measured.accuracies[1], after, pruned),
    ):
        sides[name] = {
            "accuracy": accuracy.accuracy,
            "accuracy_interval": asdict(accuracy.interval),
            "accuracy_per_class": accuracy.per_class,
            "correct": pack_correct(accuracy.predictions == inputs.splits.test.labels.numpy()),
            "macs": cost.macs,
            "parameters": cost.parameters,
            "onnx_bytes": model.onnx_bytes,
            "onnx_sha256": model.sha256,
            "opset": model.opset,
            "latency": {str(row.batch): asdict(getattr(row, name)) for row in comparisons},
        }
    notes = [*inputs.notes, *([measured.provider.note] if measured.provider.note else [])]
    notes += [f"{name} stays whole: {reason}" for name, reason in locked(plan.groups)]
    report = {
        "schema_version": SCHEMA_VERSION,
        "secateur_version": installed_packages().get("secateur", "unknown"),
        "model": Path(recipe.model.model).name,
        "exit_code": int(exit_code(gates)),
        "accuracy_against": against,
        **sides,
        "drop": asdict(measured.drop),
        "ratios": {
            "macs": before.macs / after.macs,
            "parameters": before.parameters / after.parameters,
            "onnx_bytes": baseline.onnx_bytes / pruned.onnx_bytes,
            "latency": {str(row.batch): asdict(row.ratio) for row in comparisons},
        },
        "noise_floor": {str(row.batch): asdict(row.noise_floor) for row in comparisons},
        "parity": {
            "max_relative_difference": max(model.parity.max_relative_difference for model in measured.files),
            "batch_sizes": list(pruned.parity.batch_sizes),
        },
        "provider": measured.provider.provider,
        "variants": list(measured.variants),
        "candidates": list(measured.candidates),
        "conditions": measured.conditions,
        "layers": _layer_rows(plan, measured.costs),
        "gates": [gate.to_json() for gate in gates],
        "search": measured.search.to_json() if measured.search else None,
        "latency_budget": _latency(measured.latency, gated.ratio if gated else None),
        "repair": measured.repairs[-1].to_json(),
        "rounds": [{"steps": [asdict(step) for step in repair.steps]} for repair in measured.repairs],
        "history": measured.history.to_json() if measured.history else None,
        "evidence": EVIDENCE_PAGE if recipe.evidence.page else None,
        "pathways": [dict(row) for row in measured.pathways] if measured.pathways is not None else None,
        "timings_s": dict(measured.timings),
        "environment": describe_environment().to_json(),
        "recipe": recipe.to_dict(),
        "inputs": {
            "weights_sha256": inputs.network.source.weights_sha256 or inputs.fingerprint,
            "data_listing_sha256": inputs.splits.listing_sha256,
            "images": {
                "train": len(inputs.splits.train),
                "calibration": len(inputs.calibration),
                "validation": len(inputs.splits.validation),
                "test": len(inputs.splits.test),
            },
            "test_sha256": inputs.content["test"],
            "test_per_class": _per_class(inputs),
            "unlabelled": list(inputs.splits.unlabelled),
        },
        "release": None,
        "notes": [*notes, *ranking_notes(measured.scores), *order_notes(plan)],
    }
    if measured.release is not None:
        held, report["release"] = judge_release(recipe.release, measured.release, report)
        report["gates"] = [gate.to_json() for gate in (*gates, *held)]
        report["exit_code"] = int(exit_code((*gates, *held)))
    return report


def _per_class(inputs: Inputs) -> dict[str, int]:
    """Test images of every class."""
    names = inputs.network.class_names
    counts = inputs.splits.test.labels.bincount(minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


def ranking_notes(scores: KernelScores) -> list[str]:
    """Where the ranking comes from, and what it could not see or only estimated; of a consensus its weights."""
    details = scores.details
    if scores.method == "consensus":
        return _consensus_notes(details)
    notes = [f"Ranked by {scores.method}: {get_ranker(scores.method).source}."]
    for layer, mixer in {**details.get("no closed form", {}), **details.get("links without a closed form", {})}.items():
        notes.append(f"{layer}: no Shapley values in closed form, by {mixer}.")
    notes += [f"{layer}: Shapley values estimated by {how}." for layer, how in details.get("estimated", {}).items()]
    if target := details.get("target"):
        notes.append(
            f"Filters of {target} by the loss of the classes they belong to; layers before it by {details['links']}."
        )
    if unscored := details.get("not scored"):
        notes.append(f"Without a score by {scores.method}: {', '.join(unscored)}.")
    return notes


def order_notes(plan: PruningPlan) -> list[str]:
    """Which order of a consensus the plan goes by, what was measured of each, and how many groups each decides."""
    notes = []
    if plan.tried:
        measured = ", ".join(f"{order} {value:.3g}" for order, value in plan.tried.items())
        notes.append(
            f"The plan goes by {plan.order}. Divergence from the original on validation images, in nats, of each order's cut "
            f"after its repair: {measured}."
        )
    counts = Counter(group.decided_by for group in plan.groups if not group.locked)
    if len(counts) < 2:
        return notes
    shares = ", ".join(f"{method} in {count}" for method, count in counts.most_common())
    return [
        *notes,
        f"Group by group the order that was measured to lose least decides: {shares} of {counts.total()} groups.",
    ]


def _consensus_notes(details: Mapping[str, Any]) -> list[str]:
    shares = ", ".join(
        f"{name} {100 * weight:.0f}% (area {details['areas'][name]:.3f})" for name, weight in details["weights"].items()
    )
    notes = [
        f"Ranked by {', '.join(details['members'])} on {details['images that ranked']} calibration images, weighted by how "
        f"each holds on {details['images that judged']} others: {shares}. Together: area {details['area']:.3f}."
    ]
    notes += [
        f"Without {name}: {100 * change['kernels that change sides']:.0f}% of the kernels change between the lower and the "
        f"upper half of their layer, area {change['area']:.3f}."
        for name, change in details["without"].items()
    ]
    return [*notes, *(f"{name} was left out: {reason}" for name, reason in details["left out"].items())]


def _budget(measured: Measured, speedup: Ratio | None) -> BudgetCheck:
    """What was asked for against what is shipped, repairs included."""
    plan, search = measured.plan, measured.search
    if search is not None:
        best = (
            min(search.trials, key=lambda trial: trial.high) if search.chosen is None else search.trials[search.chosen]
        )
        meaning = "upper end of the drop on validation images, points, of the cheapest try that held"
        return BudgetCheck(best.high, search.max_drop, search.missed, meaning)
    if measured.latency is not None and speedup is not None:
        outcome = measured.latency
        found = outcome.judged(1 / speedup.ratio, 1 / speedup.high, 1 / speedup.low)
        meaning = (
            f"time of model.onnx over baseline.onnx at batch {outcome.table.about['batch']}, the surer of the try and the last "
            f"measurement, at most {100 * TOLERANCE:g}% above the limit"
        )
        return BudgetCheck(found, outcome.search.asked, outcome.search.missed(found), meaning)
    left = measured.shipped.of(plan.resource) / plan.before.of(plan.resource)
    missed = plan.missed
    if not missed and left > plan.fraction:
        missed = f"biases that the repair added bring it to {left:.4f} of the baseline"
    return BudgetCheck(left, plan.fraction, missed, f"fraction of the baseline's {_WORD[plan.resource]} that is left")


def _latency(outcome: LatencyOutcome | None, speedup: Ratio | None) -> dict[str, Any] | None:
    """What was asked of the latency, planned, tried, and measured on the shipped file in the end."""
    if outcome is None or speedup is None:
        return None
    return {**outcome.to_json(), "measured": 1 / speedup.ratio, "low": 1 / speedup.high, "high": 1 / speedup.low}


_WORD = {"macs": "MACs", "params": "parameters", "size": "bytes of weights"}


def _layer_rows(plan: PruningPlan, costs: CostModel) -> list[dict[str, Any]]:
    group_of = {layer: group for group in plan.groups for layer in group.layers}
    rows = []
    for name, shape in costs.layers.items():
        group = group_of.get(name)
        if shape.inputs is None or group is None:
            continue
        removed = len(plan.cut[name].out_removed) if name in plan.cut else 0
        gone = set(group.removed) if group.scores else set()
        rows.append(
            {
                "name": name,
                "group": group.name,
                "before": shape.outputs,
                "after": shape.outputs - removed,
                "aligned": group.aligned,
                "decided_by": group.decided_by,
                "locked": group.locked,
                "highest_gone": max((group.scores[unit] for unit in gone), default=None),
                "lowest_kept": min(
                    (group.scores[unit] for unit in range(group.units) if unit not in gone), default=None
                )
                if group.scores
                else None,
            }
        )
    return rows


def locked(groups: Iterable[ChannelGroup | GroupPlan]) -> list[tuple[str, str]]:
    """Groups that stay whole, with the reason; the head goes without saying."""
    found = []
    for group in groups:
        if group.locked and group.locked != HEAD_LOCK:
            layers = group.layers if isinstance(group, GroupPlan) else tuple(member.layer for member in group.producers)
            others = [layer for layer in layers if layer != group.name]
            found.append((f"{group.name} (with {', '.join(others)})" if others else group.name, group.locked))
    return found
