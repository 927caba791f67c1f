"""The shipped networks in every precision, side by side: exported, compared with torch, and what the report says of each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..inputs import Inputs
from ..stages import Progress
from .accuracy import Accuracy, measure_drop
from .latency import Comparison
from .onnx_model import OnnxModel
from .pareto import on_front
from .precision import PrecisionFile, describe, file_name, to_precision

AGREEMENT_IMAGES, QUANTISATION_IMAGES = 500, 512
"""At most so many validation images for the agreement with torch, and calibration images for the ranges of int8."""
COSTS = {"latency": "latency_ms", "size": "onnx_bytes", "macs": "macs"}
"""The costs whose fronts are drawn, and where a candidate holds each."""


@dataclass(frozen=True)
class Variant:
    """One file: the ``network`` (baseline or pruned) and its precision. ``macs`` are the network's, whatever the precision."""

    network: str
    file: PrecisionFile
    macs: int

    @property
    def name(self) -> str:
        return f"{self.network} {self.file.precision}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "file": self.file.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], folder: Path) -> "Variant":
        return cls(values["network"], PrecisionFile.from_json(values["file"], folder), values["macs"])


@dataclass(frozen=True)
class Attempt:
    """A try of a search, exported: the ``fraction`` asked for, what it costs and loses on validation images."""

    fraction: float
    model: OnnxModel
    macs: int
    drop_points: float


@dataclass(frozen=True)
class VariantFigures:
    """What was measured of the files: all lists in the order of the variants, the baseline in float32 first.

    ``test`` and ``validation``: accuracy on those images (validation only where candidates are compared). ``comparisons``: by
    batch size each file but the first against the first. ``attempts``: the same of a search's tries, at the gate's batch size.
    ``memory``: bytes, at the gate's batch size.
    """

    test: Sequence[Accuracy]
    validation: Sequence[Accuracy]
    comparisons: Mapping[int, Sequence[Comparison]]
    attempts: Sequence[Comparison]
    memory: Sequence[int | None]
    conditions: Mapping[str, Any]


def export_variants(
    inputs: Inputs, networks: Sequence[tuple[str, Any, OnnxModel, int]], provider: str, progress: Progress
) -> list[Variant]:
    """Write the lower precisions that the recipe asks for beside the float32 files, and hold every file against torch.

    Args:
        networks: (name, network, its float32 file, MACs).
    """
    recipe = inputs.recipe
    precisions = ("fp32", *recipe.measurement.lower_precisions)
    images = inputs.splits.validation.sample(AGREEMENT_IMAGES, recipe.seed)
    calibration = inputs.calibration.sample(QUANTISATION_IMAGES, recipe.seed)
    found = []
    for name, network, model, macs in networks:
        for precision in precisions:
            path = model.path.with_name(file_name(model.path.name, precision))
            if precision != "fp32":
                to_precision(model.path, path, precision, calibration, provider)
            found.append(Variant(name, describe(path, precision, network, images), macs))
            progress(len(found), len(networks) * len(precisions))
    return found


def variant_rows(inputs: Inputs, variants: Sequence[Variant], figures: VariantFigures) -> list[dict[str, Any]]:
    """A report's ``variants``: drops and speed-ups are against the baseline in float32."""
    test, seed = inputs.splits.test, inputs.recipe.seed
    rows = []
    for index, (variant, accuracy) in enumerate(zip(variants, figures.test, strict=True)):
        against = {batch: row[index - 1] if index else None for batch, row in figures.comparisons.items()}
        rows.append(
            {
                "network": variant.network,
                "precision": variant.file.precision,
                "file": variant.file.path.name,
                "onnx_bytes": variant.file.onnx_bytes,
                "onnx_sha256": variant.file.sha256,
                "macs": variant.macs,
                "parity": asdict(variant.file.agreement),
                "accuracy": accuracy.accuracy,
                "accuracy_interval": asdict(accuracy.interval),
                "drop": asdict(measure_drop(figures.test[0], accuracy, test, seed)) if index else None,
                "latency": {
                    str(batch): asdict(row[index - 1].pruned if index else row[0].baseline)
                    for batch, row in figures.comparisons.items()
                },
                "speedup": {str(batch): asdict(row.ratio) for batch, row in against.items() if row is not None},
                "peak_memory_bytes": figures.memory[index],
            }
        )
    return rows


def candidate_rows(
    inputs: Inputs, variants: Sequence[Variant], attempts: Sequence[Attempt], figures: VariantFigures
) -> list[dict[str, Any]]:
    """A report's ``candidates``: every file that could be shipped, on the same validation images, and which fronts it is on.

    Empty where there is nothing to choose from: one precision and no search.
    """
    if not figures.validation:
        return []
    gated = figures.comparisons[inputs.recipe.measurement.latency_batch]
    rows: list[dict[str, Any]] = [
        {
            "name": variant.name,
            "precision": variant.file.precision,
            "file": variant.file.path.name,
            "accuracy": accuracy.accuracy,
            "onnx_bytes": variant.file.onnx_bytes,
            "macs": variant.macs,
            "latency_ms": (gated[index - 1].pruned if index else gated[0].baseline).median_ms,
        }
        for index, (variant, accuracy) in enumerate(zip(variants, figures.validation, strict=True))
    ]
    rows += [
        {
            "name": f"try {100 * attempt.fraction:.1f}%",
            "precision": "fp32",
            "file": None,
            "accuracy": figures.validation[0].accuracy - attempt.drop_points / 100,
            "onnx_bytes": attempt.model.onnx_bytes,
            "macs": attempt.macs,
            "latency_ms": comparison.pruned.median_ms,
        }
        for attempt, comparison in zip(attempts, figures.attempts, strict=True)
    ]
    fronts = {
        name: on_front([row[key] for row in rows], [row["accuracy"] for row in rows]) for name, key in COSTS.items()
    }
    return [
        {**row, "on_front": {name: front[index] for name, front in fronts.items()}} for index, row in enumerate(rows)
    ]
