"""The stages that make and measure the files of a run: export, accuracy, latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.environment import describe_environment
from ..common.files import read_json, sha256_json, write_json
from ..common.progress import Progress
from ..export.measure.accuracy import Accuracy, measure_accuracy
from ..export.measure.latency import Comparison, TimingSettings, compare_latencies
from ..export.measure.telemetry import observed_conditions, peak_memory
from ..export.measure.variants import Attempt, Variant, VariantFigures, VariantTask, export_variants
from ..export.onnx.model import OnnxModel, export_onnx
from ..export.runtime.session import ON_GPU
from ..prune.budget_search.by_drop import Search, Trial
from .inputs import Inputs
from .pruner import Candidate, shipped_cost
from .recipe import Recipe
from .stage_store import Stages

BASELINE_ONNX, PRUNED_ONNX, TRIED_ONNX = "baseline.onnx", "model.onnx", "tried.onnx"


def timing(recipe: Recipe, provider: str) -> TimingSettings:
    """How a run's files are timed."""
    how = recipe.measurement
    return TimingSettings(provider, how.threads, how.cuda_graphs, recipe.seed)


@dataclass(frozen=True)
class Files:
    """The float32 files, baseline first, and these with their lower precisions, the baseline's first."""

    models: tuple[OnnxModel, OnnxModel]
    variants: tuple[Variant, ...]

    @property
    def pruned(self) -> int:
        """Where among the variants the pruned network in float32 is."""
        return next(index for index, variant in enumerate(self.variants) if variant.network == "pruned")


def export_files(inputs: Inputs, pruned: Candidate, baseline_macs: int, provider: str, stages: Stages) -> Files:
    """Export both networks in every precision that the recipe asks for."""
    lower = inputs.recipe.measurement.lower_precisions
    content = [inputs.content[name] for name in ("calibration", "validation")]
    # float32 alone depends on nothing else than the network
    more = {"precisions": lower, "gpu": provider in ON_GPU, "images": content} if lower else {}

    def work(folder: Path, progress: Progress) -> None:
        models = _export(inputs, pruned, folder)
        networks = [
            ("baseline", inputs.network, models[0], baseline_macs),
            ("pruned", pruned.network, models[1], shipped_cost(pruned).macs),
        ]
        task = VariantTask(lower, inputs.splits.validation, inputs.calibration, provider, inputs.recipe.seed)
        variants = export_variants(networks, task, progress)
        rows = {"models": [one.to_json() for one in models], "variants": [one.to_json() for one in variants]}
        write_json(folder / "export.json", rows)

    def load(folder: Path) -> Files:
        rows = read_json(folder / "export.json")
        baseline, small = (OnnxModel.from_json(values, folder) for values in rows["models"])
        return Files((baseline, small), tuple(Variant.from_json(values, folder) for values in rows["variants"]))

    return stages.run("export", {"network": pruned.key, **more}, work, load)


def export_attempt(tried: Candidate, trial: Trial, stages: Stages) -> Attempt:
    """Export a try of a search, to be measured beside what is shipped."""

    def work(folder: Path, progress: Progress) -> None:
        write_json(folder / "export.json", export_onnx(tried.network, folder / TRIED_ONNX, {"what": "tried"}).to_json())

    model = stages.run(
        f"try {trial.fraction:.3f}",
        {"network": tried.key},
        work,
        lambda folder: OnnxModel.from_json(read_json(folder / "export.json"), folder),
    )
    return Attempt(trial.fraction, model, shipped_cost(tried).macs, trial.points)


def measure_files(
    inputs: Inputs, files: Files, attempts: Sequence[Attempt], provider: str, stages: Stages
) -> VariantFigures:
    """Accuracy of every file on the test images (on validation images too where candidates are compared), and latency."""
    compared = len(files.variants) > 2 or bool(attempts)
    test, validation = stages.run(
        "accuracy",
        {
            "export": stages.keys["export"],
            "provider": provider,
            "images": inputs.content["test"],
            **({"validation": inputs.content["validation"]} if compared else {}),
        },
        lambda folder, progress: _measure_accuracies(inputs, files, compared, provider, folder, progress),
        _accuracies,
    )
    measurement = inputs.recipe.measurement
    comparisons, tries, memory, conditions = stages.run(
        "latency",
        {
            "export": stages.keys["export"],
            "attempts": [attempt.model.sha256 for attempt in attempts],
            "provider": provider,
            "batches": measurement.measured_batches,
            "how": [measurement.latency_batch, measurement.threads, measurement.cuda_graphs],
            "environment": describe_environment().to_json(),
        },
        lambda folder, progress: _measure_latencies(inputs, files, attempts, provider, folder, progress),
        _latencies,
    )
    return VariantFigures(test, validation, comparisons, tries, memory, conditions)


def not_shipped(attempts: Sequence[Attempt], search: Search | None) -> list[Attempt]:
    """The tries without the one that is shipped, which is measured as model.onnx."""
    chosen = None if search is None or search.chosen is None else search.trials[search.chosen].fraction
    return [attempt for attempt in attempts if attempt.fraction != chosen]


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
        export_onnx(inputs.network, folder / BASELINE_ONNX, {"what": "baseline"}),
        export_onnx(pruned.network, folder / PRUNED_ONNX, done),
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
    settings = timing(inputs.recipe, provider)
    first, *others = [variant.file.path for variant in files.variants]
    batches, rows, tries = measurement.measured_batches, {}, []
    with observed_conditions() as conditions:
        for index, batch in enumerate(batches):

            def step(done: int, total: int, index: int = index) -> None:
                progress(index * 100 + 100 * done // total, 100 * len(batches))

            gated = batch == measurement.latency_batch
            also = [attempt.model.path for attempt in attempts] if gated else []
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
            "attempts": tries,
            "memory": memory,
            "conditions": {
                **conditions.to_json(),
                "threads": settings.used_threads,
                "cuda_graphs": settings.cuda_graphs,
            },
        },
    )


def _latencies(folder: Path) -> tuple[dict[int, list[Comparison]], list[Comparison], list[int | None], dict[str, Any]]:
    rows = read_json(folder / "latency.json")
    comparisons = {
        int(batch): [Comparison.from_json(row) for row in some] for batch, some in rows["comparisons"].items()
    }
    return comparisons, [Comparison.from_json(row) for row in rows["attempts"]], rows["memory"], rows["conditions"]
