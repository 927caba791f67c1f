"""The stages that export and measure the files of a run: export, accuracy, latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.environment import describe_environment
from ...common.files import read_json, sha256_json, write_json
from ...common.progress import Progress
from ...export.measure.accuracy import Accuracy, measure_accuracy
from ...export.measure.fused_biases import timing_conditions, try_fused_biases
from ...export.measure.latency import Comparison, compare_latencies
from ...export.measure.telemetry import observed_conditions, peak_memory
from ...export.measure.variants import Attempt, Variant, VariantFigures, VariantTask, export_variants
from ...export.onnx.model import OnnxModel, export_onnx
from ...export.runtime.providers import ON_GPU
from ...prune.budget_search.by_drop import Trial
from ..inputs import Inputs
from ..run_folder import BASELINE_ONNX, PRUNED_ONNX
from .candidates import Candidate, shipped_cost
from .latency_budget import export_baseline, timing_settings
from .store import Stage, StageStore, Workplace

TRIED_ONNX = "tried.onnx"
EXPORTED_ONNX = "baseline-as-exported.onnx"
"""The baseline as torch exports it, in the folder of the export; absent if it is clean."""


@dataclass(frozen=True)
class Files:
    """The float32 files, baseline first, and all files with their lower precisions, the baseline's first.

    ``key`` is a hash of everything that determines them.
    """

    models: tuple[OnnxModel, OnnxModel]
    variants: tuple[Variant, ...]
    key: str

    @property
    def pruned(self) -> int:
        """The index of the pruned network in float32 among the variants."""
        return next(index for index, variant in enumerate(self.variants) if variant.network == "pruned")


def export_files(inputs: Inputs, pruned: Candidate, provider: str, store: StageStore) -> Files:
    """Export both networks in every precision of the recipe."""
    stage = export_stage(inputs, pruned, provider)
    models, variants = store.run(stage)
    return Files(models, variants, stage.key)


def measure_files(
    inputs: Inputs, files: Files, attempts: Sequence[Attempt], provider: str, store: StageStore
) -> VariantFigures:
    """Accuracy of every file on the test images (and on validation images, if candidates are compared), and latency."""
    compared = len(files.variants) > 2 or bool(attempts)
    test, validation = store.run(accuracy_stage(inputs, files, compared, provider))
    comparisons, tries, memory, conditions, exported = store.run(latency_stage(inputs, files, attempts, provider))
    return VariantFigures(test, validation, comparisons, tries, memory, conditions, exported)


def export_stage(
    inputs: Inputs, pruned: Candidate, provider: str
) -> Stage[tuple[tuple[OnnxModel, OnnxModel], tuple[Variant, ...]]]:
    """Export both networks, check their parity with torch, and write the lower precisions."""
    lower = inputs.recipe.measurement.lower_precisions
    content = [inputs.content[name] for name in ("calibration", "validation")]
    # float32 alone depends only on the network
    more = {"precisions": lower, "gpu": provider in ON_GPU, "images": content} if lower else {}

    def work(place: Workplace) -> None:
        models = _export(inputs, pruned, place.folder)
        networks = [
            ("baseline", inputs.network, models[0], pruned.plan.before.macs),
            ("pruned", pruned.network, models[1], shipped_cost(pruned).macs),
        ]
        task = VariantTask(lower, inputs.splits.validation, inputs.calibration, provider, inputs.recipe.seed)
        variants = export_variants(networks, task, place.progress)
        rows = {"models": [one.to_json() for one in models], "variants": [one.to_json() for one in variants]}
        write_json(place.folder / "export.json", rows)

    def load(folder: Path) -> tuple[tuple[OnnxModel, OnnxModel], tuple[Variant, ...]]:
        rows = read_json(folder / "export.json")
        baseline, small = (OnnxModel.from_json(values, folder) for values in rows["models"])
        return (baseline, small), tuple(Variant.from_json(values, folder) for values in rows["variants"])

    taken = inputs.recipe.measurement.input
    return Stage("export", {"network": pruned.key, "input": taken, **more}, work, load)


def attempt_stage(inputs: Inputs, tried: Candidate, trial: Trial) -> Stage[Attempt]:
    """Export a try of a search, to be measured for comparison."""

    taken = inputs.recipe.measurement.input

    def work(place: Workplace) -> None:
        model = export_onnx(tried.network, place.folder / TRIED_ONNX, {"what": "tried"}, input_type=taken)
        write_json(place.folder / "export.json", model.to_json())

    def load(folder: Path) -> Attempt:
        model = OnnxModel.from_json(read_json(folder / "export.json"), folder)
        return Attempt(trial.fraction, model, shipped_cost(tried).macs, trial.points)

    return Stage(f"try {trial.fraction:.3f}", {"network": tried.key, "input": taken}, work, load)


def accuracy_stage(
    inputs: Inputs, files: Files, compared: bool, provider: str
) -> Stage[tuple[list[Accuracy], list[Accuracy]]]:
    """Measure every file on the test images and, if candidates are ``compared``, on the validation images."""
    validation = {"validation": inputs.content["validation"]} if compared else {}
    return Stage(
        "accuracy",
        {"export": files.key, "provider": provider, "images": inputs.content["test"], **validation},
        lambda place: _measure_accuracies(inputs, files, compared, provider, place.folder, place.progress),
        _accuracies,
    )


Latencies = tuple[dict[int, list[Comparison]], list[Comparison], list[int | None], dict[str, Any], Comparison | None]


def latency_stage(inputs: Inputs, files: Files, attempts: Sequence[Attempt], provider: str) -> Stage[Latencies]:
    """Time every file against the baseline in float32, at every batch size of the recipe."""
    measurement = inputs.recipe.measurement
    return Stage(
        "latency",
        {
            "export": files.key,
            "attempts": [attempt.model.sha256 for attempt in attempts],
            "provider": provider,
            "batches": measurement.measured_batches,
            "how": [measurement.latency_batch, measurement.threads, measurement.cuda_graphs],
            "environment": describe_environment().to_json(),
        },
        lambda place: _measure_latencies(inputs, files, attempts, provider, place.folder, place.progress),
        _latencies,
    )


def _export(inputs: Inputs, pruned: Candidate, folder: Path) -> tuple[OnnxModel, OnnxModel]:
    recipe, plan = inputs.recipe, pruned.plan
    done = {
        "what": "pruned",
        "ranked_by": recipe.ranking.rank_by,
        "budget": {plan.resource: plan.fraction},
        "repair": pruned.repairs[-1].kind,
        "epochs": recipe.recovery.epochs if pruned.history else 0,
        "seed": recipe.seed,
        "plan_sha256": sha256_json(plan.to_json()),
    }
    return (
        export_baseline(inputs, folder / BASELINE_ONNX, folder / EXPORTED_ONNX),
        export_onnx(pruned.network, folder / PRUNED_ONNX, done, input_type=recipe.measurement.input),
    )


def _measure_accuracies(
    inputs: Inputs, files: Files, compared: bool, provider: str, folder: Path, progress: Progress
) -> None:
    names = inputs.network.class_names
    splits = {"test": inputs.splits.test, **({"validation": inputs.splits.validation} if compared else {})}
    total, before = len(files.variants) * sum(map(len, splits.values())), 0
    rows: dict[str, Any] = {"validation": []}
    for split, images in splits.items():
        rows[split] = []
        for variant in files.variants:

            def step(done: int, of: int, before: int = before) -> None:
                progress(before + done, total)

            rows[split].append(measure_accuracy(variant.file.path, images, names, provider, step).to_json())
            before += len(images)
    write_json(folder / "accuracy.json", rows)


def _accuracies(folder: Path) -> tuple[list[Accuracy], list[Accuracy]]:
    rows = read_json(folder / "accuracy.json")
    return [Accuracy.from_json(row) for row in rows["test"]], [Accuracy.from_json(row) for row in rows["validation"]]


def _measure_latencies(
    inputs: Inputs, files: Files, attempts: Sequence[Attempt], provider: str, folder: Path, progress: Progress
) -> None:
    measurement, shape = inputs.recipe.measurement, inputs.network.input_shape
    first, *others = [variant.file.path for variant in files.variants]
    settings, trials = try_fused_biases(
        _alike(files.variants, attempts), shape, measurement.latency_batch, timing_settings(inputs, provider)
    )
    batches, rows, tries = measurement.measured_batches, {}, []
    plain = [path for path in [first.with_name(EXPORTED_ONNX)] if path.is_file()]
    with observed_conditions() as conditions:
        for index, batch in enumerate(batches):

            def step(done: int, total: int, index: int = index) -> None:
                progress(index * 100 + 100 * done // total, 100 * len(batches))

            gated = batch == measurement.latency_batch
            also = [*(attempt.model.path for attempt in attempts), *plain] if gated else []
            found = compare_latencies(first, [*others, *also], shape, batch, settings, step)
            rows[str(batch)] = [row.to_json() for row in found[: len(others)]]
            tries += [row.to_json() for row in found[len(others) :]]
    memory = [
        peak_memory(path, measurement.latency_batch, shape, provider, settings.used_threads)
        for path in (first, *others)
    ]
    write_json(
        folder / "latency.json",
        {
            "comparisons": rows,
            "attempts": tries[: len(attempts)],
            "exported": tries[-1] if plain else None,
            "memory": memory,
            "conditions": {**conditions.to_json(), **timing_conditions(settings, trials)},
        },
    )


def _alike(variants: Sequence[Variant], attempts: Sequence[Attempt]) -> list[list[Path]]:
    """The files by precision: the baseline has the options of the networks that are compared with it."""
    groups: dict[str, list[Path]] = {}
    for variant in variants:
        groups.setdefault(variant.file.precision, []).append(variant.file.path)
    groups["fp32"] += [attempt.model.path for attempt in attempts]
    return list(groups.values())


def _latencies(folder: Path) -> Latencies:
    rows = read_json(folder / "latency.json")
    comparisons = {
        int(batch): [Comparison.from_json(row) for row in some] for batch, some in rows["comparisons"].items()
    }
    attempts = [Comparison.from_json(row) for row in rows["attempts"]]
    exported = Comparison.from_json(rows["exported"]) if rows["exported"] else None
    return comparisons, attempts, rows["memory"], rows["conditions"], exported
