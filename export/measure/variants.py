"""The exported networks in every precision: written, compared with torch, and described for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.progress import Progress
from ...network.images.images import Images
from ..onnx.model import OnnxModel
from ..onnx.precision import PrecisionFile, describe, file_name, to_precision
from .accuracy import Accuracy, measure_drop
from .latency import Comparison
from .pareto import on_front

AGREEMENT_IMAGES, QUANTISATION_IMAGES = 500, 512
"""The most validation images for the agreement with torch, and the most calibration images for the ranges of int8."""
COSTS = {"latency": "latency_ms", "size": "onnx_bytes", "macs": "macs"}
"""The costs whose Pareto fronts are drawn, and the field of a candidate that holds each."""


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
    """An exported try of a search: the requested ``fraction``, its cost, and its drop on validation images."""

    fraction: float
    model: OnnxModel
    macs: int
    drop_points: float


@dataclass(frozen=True)
class VariantFigures:
    """The measurements of the files: all lists in the order of the variants, the baseline in float32 first.

    ``test`` and ``validation``: accuracy on these images (validation only if candidates are compared). ``comparisons``: by
    batch size, each file but the first against the first. ``attempts``: the same for a search's tries, at the batch size of the
    gates. ``memory``: bytes, at the batch size of the gates. ``exported``: the baseline as torch exports it against the clean
    one, at that batch size; None if they are equal.
    """

    test: Sequence[Accuracy]
    validation: Sequence[Accuracy]
    comparisons: Mapping[int, Sequence[Comparison]]
    attempts: Sequence[Comparison]
    memory: Sequence[int | None]
    conditions: Mapping[str, Any]
    exported: Comparison | None = None


@dataclass(frozen=True)
class VariantTask:
    """Which lower ``precisions`` are written, on which images and for which provider.

    Agreement with torch is measured on ``validation`` images, the ranges of int8 on ``calibration`` images; both are sampled
    with ``seed``.
    """

    precisions: tuple[str, ...]
    validation: Images
    calibration: Images
    provider: str
    seed: int


def export_variants(
    networks: Sequence[tuple[str, Any, OnnxModel, int]], task: VariantTask, progress: Progress
) -> list[Variant]:
    """Write the lower precisions next to the float32 files, and compare all files with torch.

    Args:
        networks: (name, network, its float32 file, MACs).
    """
    precisions = ("fp32", *task.precisions)
    images = task.validation.sample(AGREEMENT_IMAGES, task.seed)
    calibration = task.calibration.sample(QUANTISATION_IMAGES, task.seed)
    found = []
    for name, network, model, macs in networks:
        for precision in precisions:
            path = model.path.with_name(file_name(model.path.name, precision))
            if precision != "fp32":
                to_precision(model.path, path, precision, calibration, task.provider)
            found.append(Variant(name, describe(path, precision, network, images), macs))
            progress(len(found), len(networks) * len(precisions))
    return found


def variant_rows(variants: Sequence[Variant], figures: VariantFigures, test: Images, seed: int) -> list[dict[str, Any]]:
    """A report's ``variants``: drops on the ``test`` images and speedups, against the baseline in float32."""
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
                "device_speedup": {
                    str(batch): asdict(row.device_ratio)
                    for batch, row in against.items()
                    if row is not None and row.device_ratio is not None
                },
                "peak_memory_bytes": figures.memory[index],
            }
        )
    return rows


def candidate_rows(
    variants: Sequence[Variant], attempts: Sequence[Attempt], figures: VariantFigures, batch: int
) -> list[dict[str, Any]]:
    """A report's ``candidates``: all files to choose from, on the same validation images, and the fronts that each is on.

    Empty if there is no choice: one precision and no search.
    """
    if not figures.validation:
        return []
    gated = figures.comparisons[batch]
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
