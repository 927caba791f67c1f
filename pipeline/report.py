"""Assemble the content of ``report.json``: all measurements of a run, judged by the gates, as in ``report.schema.json``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.environment import describe_environment, installed_packages
from ..explain.registry import get_ranker
from ..explain.scores import KernelScores
from ..export.evidence.page import EVIDENCE_PAGE
from ..export.measure.accuracy import MEASURES, Accuracy, Drop, measure_drop, pack_correct
from ..export.measure.latency import Comparison
from ..export.measure.paired_ratio import Ratio
from ..export.measure.variants import VariantFigures, candidate_rows, variant_rows
from ..export.onnx.precision import file_name
from ..export.report.content import SCHEMA_VERSION
from ..export.report.gates import BudgetCheck, Gate, exit_code, judge
from ..export.report.release import judge_release
from ..export.runtime.provider_choice import ProviderChoice
from ..prune.cost import Cost, CostModel
from ..prune.locked_share import WORDS, LockedShare
from ..prune.plan import PruningPlan
from .inputs import Inputs
from .run_folder import BASELINE_ONNX, PRUNED_ONNX
from .stages.budget import Pruned
from .stages.candidates import shipped_cost
from .stages.ranking import Ranked
from .stages.shipped_files import Files
from .stages.time_of_plan import TimeOfPlan
from .time_report import check_time, exported_baseline, planned_speedup, time_to_json, uncut_notes


@dataclass(frozen=True)
class Outcome:
    """The results of a run. ``timings`` are seconds by stage, ``release`` is the report of the last release, if given."""

    ranked: Ranked
    locks: LockedShare
    pruned: Pruned
    files: Files
    figures: VariantFigures
    pathways: Sequence[Mapping[str, Any]] | None
    provider: ProviderChoice
    timings: Mapping[str, float]
    release: Mapping[str, Any] | None = None
    torch_times: Mapping[str, Any] | None = None
    time: TimeOfPlan | None = None

    @property
    def plan(self) -> PruningPlan:
        return self.pruned.candidate.plan

    @property
    def accuracies(self) -> tuple[Accuracy, Accuracy]:
        """The accuracies of the baseline and of the pruned network in float32, on test images."""
        return self.figures.test[0], self.figures.test[self.files.pruned]

    @property
    def comparisons(self) -> list[Comparison]:
        """The pruned network in float32 against the baseline, by batch size."""
        return [rows[self.files.pruned - 1] for rows in self.figures.comparisons.values()]

    def speedup(self, batch: int, latency_of: str) -> Ratio | None:
        """The measured speedup at a batch size, end to end or on the device."""
        return next((row.meant(latency_of) for row in self.comparisons if row.batch == batch), None)


def assemble_report(inputs: Inputs, outcome: Outcome) -> dict[str, Any]:
    """The content of ``report.json``."""
    recipe, plan = inputs.recipe, outcome.plan
    candidate, files = outcome.pruned.candidate, outcome.files
    shipped = shipped_cost(candidate)
    drop = measure_drop(*outcome.accuracies, inputs.splits.test, recipe.seed)
    measurement = recipe.measurement
    batch = measurement.latency_batch
    speedup = planned_speedup(files, outcome.figures, measurement)
    gates = _gates(inputs, outcome, shipped, drop, speedup)
    variants = variant_rows(files.variants, outcome.figures, inputs.splits.test, recipe.seed)
    first = uncut_notes(variants, 1 / recipe.budget.fraction, measurement) if recipe.budget.by_time else []
    search, history = outcome.pruned.search, candidate.history
    report = {
        "schema_version": SCHEMA_VERSION,
        "secateur_version": installed_packages().get("secateur", "unknown"),
        "model": Path(recipe.model.model).name,
        "exit_code": int(exit_code(gates)),
        "accuracy_against": _against(inputs),
        **_sides(inputs, outcome, shipped),
        "drop": asdict(drop),
        **_comparison(outcome, shipped),
        "provider": outcome.provider.provider,
        "variants": variants,
        "candidates": candidate_rows(files.variants, outcome.pruned.attempts, outcome.figures, batch),
        "conditions": outcome.figures.conditions,
        "torch_times": outcome.torch_times,
        "locked": outcome.locks.to_json(),
        "layers": _layer_rows(plan, outcome.ranked.channels.costs),
        "gates": [gate.to_json() for gate in gates],
        "search": search.to_json() if search else None,
        "time_of_plan": asdict(outcome.time) if outcome.time else None,
        "latency_budget": time_to_json(outcome.pruned.latency, speedup, measurement.latency_of),
        "repair": candidate.repairs[-1].to_json(),
        "rounds": [{"steps": [asdict(step) for step in repair.steps]} for repair in candidate.repairs],
        "history": history.to_json() if history else None,
        "evidence": EVIDENCE_PAGE if recipe.evidence.page else None,
        "pathways": [dict(row) for row in outcome.pathways] if outcome.pathways is not None else None,
        "timings_s": dict(outcome.timings),
        "environment": describe_environment().to_json(),
        "recipe": recipe.to_dict(),
        "inputs": _inputs(inputs),
        "release": None,
        "notes": [*first, *_notes(inputs, outcome)],
    }
    if outcome.release is not None:
        held, report["release"] = judge_release(recipe.release, outcome.release, report)
        report["gates"] = [gate.to_json() for gate in (*gates, *held)]
        report["exit_code"] = int(exit_code((*gates, *held)))
    return report


def _against(inputs: Inputs) -> str:
    """The reference of accuracies: labels or the original network's predictions."""
    return "labels" if inputs.splits.test.labelled else "original"


def _gates(inputs: Inputs, outcome: Outcome, shipped: Cost, drop: Drop, speedup: Ratio | None) -> tuple[Gate, ...]:
    return judge(
        inputs.recipe.gates,
        budget=_budget(inputs, outcome, shipped, speedup),
        drop=drop,
        speedup=outcome.speedup(inputs.recipe.measurement.latency_batch, inputs.recipe.measurement.latency_of),
        onnx_bytes=outcome.files.models[1].onnx_bytes,
        provider=outcome.provider.provider,
        measure=MEASURES[_against(inputs)],
        latency_of=inputs.recipe.measurement.latency_of,
    )


def _sides(inputs: Inputs, outcome: Outcome, shipped: Cost) -> dict[str, Any]:
    """The measurements of the baseline and of the pruned network."""
    sides = {}
    costs, models = (outcome.plan.before, shipped), outcome.files.models
    for name, accuracy, cost, model in zip(("baseline", "pruned"), outcome.accuracies, costs, models, strict=True):
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
            "latency": {str(row.batch): asdict(getattr(row, name)) for row in outcome.comparisons},
        }
    return sides


def _comparison(outcome: Outcome, shipped: Cost) -> dict[str, Any]:
    """The baseline against the pruned network, and both against torch."""
    before, (baseline, pruned) = outcome.plan.before, outcome.files.models
    return {
        "ratios": {
            "macs": before.macs / shipped.macs,
            "parameters": before.parameters / shipped.parameters,
            "onnx_bytes": baseline.onnx_bytes / pruned.onnx_bytes,
            "latency": {str(row.batch): asdict(row.ratio) for row in outcome.comparisons},
            "device_latency": {
                str(row.batch): asdict(row.device_ratio) for row in outcome.comparisons if row.device_ratio
            },
        },
        "exported_baseline": exported_baseline(outcome.figures.exported, outcome.comparisons),
        "noise_floor": {str(row.batch): asdict(row.noise_floor) for row in outcome.comparisons},
        "parity": {
            "max_relative_difference": max(model.parity.max_relative_difference for model in (baseline, pruned)),
            "batch_sizes": list(pruned.parity.batch_sizes),
        },
    }


def _inputs(inputs: Inputs) -> dict[str, Any]:
    """The inputs of the run."""
    splits = inputs.splits
    return {
        "weights_sha256": inputs.network.source.weights_sha256 or inputs.fingerprint,
        "data_listing_sha256": splits.listing_sha256,
        "images": {
            "train": len(splits.train),
            "calibration": len(inputs.calibration),
            "validation": len(splits.validation),
            "test": len(splits.test),
        },
        "test_sha256": inputs.content["test"],
        "test_per_class": _per_class(inputs),
        "unlabelled": list(splits.unlabelled),
    }


def _notes(inputs: Inputs, outcome: Outcome) -> list[str]:
    """Notes on the data, the machine and the ranking."""
    return [
        *inputs.notes,
        *([outcome.provider.note] if outcome.provider.note else []),
        *(note for model in outcome.files.models if (note := model.parity.note())),
        *ranking_notes(outcome.ranked.scores),
        *order_notes(outcome.plan),
        *_time_notes(inputs, outcome),
    ]


def _time_notes(inputs: Inputs, outcome: Outcome) -> list[str]:
    """What time a plan that was not made by time should give, and gave."""
    if outcome.time is None:
        return []
    batch = inputs.recipe.measurement.latency_batch
    speedup = outcome.speedup(batch, "end-to-end")
    return [outcome.time.note(None if speedup is None else speedup.ratio, batch)]


def _per_class(inputs: Inputs) -> dict[str, int]:
    """Test images of every class."""
    names = inputs.network.class_names
    counts = inputs.splits.test.labels.bincount(minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))


def ranking_notes(scores: KernelScores) -> list[str]:
    """The source of the ranking, and layers that it could not score or only estimate; for a consensus, its weights."""
    details = scores.details
    if scores.method == "consensus":
        return _consensus_notes(details)
    notes = [f"Ranked by {scores.method}: {get_ranker(scores.method).source}."]
    for layer, mixer in {**details.get("no closed form", {}), **details.get("links without a closed form", {})}.items():
        notes.append(f"{layer}: no Shapley values in closed form, because of {mixer}.")
    notes += [f"{layer}: Shapley values estimated by {how}." for layer, how in details.get("estimated", {}).items()]
    if target := details.get("target"):
        notes.append(
            f"Filters of {target} are scored by the loss of their classes, layers before it by {details['links']}."
        )
    if unscored := details.get("not scored"):
        notes.append(f"Without a score by {scores.method}: {', '.join(unscored)}.")
    return notes


def order_notes(plan: PruningPlan) -> list[str]:
    """The whole branches that the plan removes; the order of a consensus that it follows, the divergence measured for each, and
    the number of groups that each decides.
    """
    notes = []
    if found := plan.branches:
        notes.append(
            f"{len(found.names)} whole branches are removed: {', '.join(found.names)}. Measured together they lose "
            f"{found.together_nats:.3g} nats, one by one {found.sum_nats:.3g} in sum; plans made: {found.plans}."
        )
    if plan.tried:
        measured = ", ".join(f"{order} {value:.3g}" for order, value in plan.tried.items())
        notes.append(
            f"The plan follows {plan.order}. Divergence from the original on validation images, in nats, of each order's cut "
            f"after its repair: {measured}."
        )
    counts = Counter(group.decided_by for group in plan.groups if not group.locked)
    if len(counts) < 2:
        return notes
    shares = ", ".join(f"{method} in {count}" for method, count in counts.most_common())
    return [
        *notes,
        f"Each group follows the order with the smallest measured loss: {shares} of {counts.total()} groups.",
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


def _budget(inputs: Inputs, outcome: Outcome, shipped: Cost, speedup: Ratio | None) -> BudgetCheck:
    """The requested budget against the exported network, including repairs."""
    best_effort, measurement = inputs.recipe.budget.best_effort, inputs.recipe.measurement
    plan, search, latency = outcome.plan, outcome.pruned.search, outcome.pruned.latency
    if search is not None:
        best = (
            min(search.trials, key=lambda trial: trial.high) if search.chosen is None else search.trials[search.chosen]
        )
        meaning = "upper bound of the drop on validation images, points, of the cheapest try within the limit"
        return BudgetCheck(best.high, search.max_drop, search.missed, meaning)
    if latency is not None and speedup is not None:
        names = [file_name(name, measurement.planned_precision) for name in (PRUNED_ONNX, BASELINE_ONNX)]
        return check_time(latency, speedup, names, measurement.latency_of, best_effort)
    left = shipped.of(plan.resource) / plan.before.of(plan.resource)
    missed = plan.missed
    if not missed and left > plan.fraction:
        missed = f"biases that the repair added bring it to {left:.4f} of the baseline"
    meaning = f"fraction of the baseline's {WORDS[plan.resource]} that is left"
    return BudgetCheck(left, plan.fraction, missed, meaning, best_effort)


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
