"""Compare any two ONNX classifiers: latency, throughput, memory and, with images, accuracy."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...common.checks import check_whole
from ...common.environment import describe_environment
from ...common.errors import InputError, UsageError
from ...common.files import sha256_file
from ...common.progress import Observer
from ...export.measure.accuracy import MEASURES, Accuracy, Drop, accuracy_of, measure_accuracy, measure_drop
from ...export.measure.fused_biases import timing_conditions, try_fused_biases
from ...export.measure.latency import Comparison, TimingSettings, compare_latencies
from ...export.measure.telemetry import observed_conditions, peak_memory
from ...export.onnx.model import read_metadata
from ...export.runtime.classifier import Classifier, read_classifier
from ...export.runtime.provider_choice import choose_provider
from ...export.runtime.session import node_placement
from ...network.images.load import load_images
from ...network.images.pictures import Preprocessing
from ...network.images.splits import reorder_classes
from ...network.settings import ModelSettings

Row = tuple[str, ...]
DEFAULT_BATCHES = (1, 32)
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class BenchSettings:
    """How two ONNX files are compared. Preprocessing comes from secateur's metadata in a file, or from these settings.

    ``batches``: by default the only size that a file accepts, or 1 and 32. ``threads``, ``cuda_graphs``: as for a run's
    latency.
    """

    batches: tuple[int, ...] | None = None
    data: str | None = None
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    provider: str = "auto"
    seed: int = 0
    threads: int = 0
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.batches is not None and (not self.batches or min(self.batches) < 1):
            raise UsageError(f"batches must be whole numbers of at least 1 (got {self.batches}).")
        check_whole("threads", self.threads, 0)
        ModelSettings(input_shape=self.input_shape, mean=self.mean, std=self.std)


@dataclass(frozen=True)
class Bench:
    """The measurements of two files. ``measure`` names what the accuracies measure; all three are None without images.

    ``memory``: bytes at the smallest batch size. ``placement``: nodes by the provider that runs them. ``conditions``: clocks
    and power.
    """

    files: tuple[Path, Path]
    provider: str
    comparisons: tuple[Comparison, ...]
    accuracies: tuple[Accuracy, Accuracy] | None
    drop: Drop | None
    measure: str | None
    memory: tuple[int | None, int | None]
    placement: tuple[dict[str, int], dict[str, int]]
    conditions: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All measurements, with the machine."""
        sides = []
        for index, path in enumerate(self.files):
            accuracy = self.accuracies[index] if self.accuracies else None
            sides.append(
                {
                    "file": path.name,
                    "bytes": path.stat().st_size,
                    "sha256": sha256_file(path),
                    "accuracy": accuracy.accuracy if accuracy else None,
                    "accuracy_interval": asdict(accuracy.interval) if accuracy else None,
                    "latency": {str(row.batch): asdict((row.baseline, row.pruned)[index]) for row in self.comparisons},
                    "peak_memory_bytes": self.memory[index],
                    "nodes": self.placement[index],
                }
            )
        return {
            "first": sides[0],
            "second": sides[1],
            "measure": self.measure,
            "drop": asdict(self.drop) if self.drop else None,
            "speedup": {str(row.batch): asdict(row.ratio) for row in self.comparisons},
            "device_speedup": {str(row.batch): asdict(row.meant("device")) for row in self.comparisons},
            "noise_floor": {str(row.batch): asdict(row.noise_floor) for row in self.comparisons},
            "provider": self.provider,
            "conditions": self.conditions,
            "environment": describe_environment().to_json(),
        }

    def rows(self) -> list[Row]:
        """Rows for the terminal: (figure, first, second, change)."""
        rows: list[Row] = []
        if self.accuracies is not None and self.drop is not None and self.measure is not None:
            shares = [f"{100 * one.accuracy:.2f}%" for one in self.accuracies]
            drop = self.drop
            change = f"{0.0 - drop.points:+.2f} points ({0.0 - drop.high:+.2f} to {0.0 - drop.low:+.2f})"
            rows.append((self.measure, *shares, change))
        rows.append(("bytes", *(str(path.stat().st_size) for path in self.files), ""))
        for row in self.comparisons:
            both, floor = (row.baseline, row.pruned), row.noise_floor
            change, on_device = (
                f"{ratio.ratio:.2f}x speedup ({ratio.low:.2f} to {ratio.high:.2f})"
                for ratio in (row.ratio, row.meant("device"))
            )
            rows += [
                (f"latency, batch {row.batch}", *(f"{one.median_ms:.3f} ms" for one in both), change),
                ("  95th percentile", *(f"{one.p95_ms:.3f} ms" for one in both), ""),
                ("  on the device alone", *(f"{one.device_median_ms or 0:.3f} ms" for one in both), on_device),
                ("  images per second", *(f"{one.images_per_second or 0:.0f}" for one in both), ""),
                ("  first against itself", "", "", f"{floor.ratio:.3f} ({floor.low:.3f} to {floor.high:.3f})"),
            ]
        rows.append(
            ("peak memory", *("not measured" if one is None else f"{one / 1e6:.1f} MB" for one in self.memory), "")
        )
        rows.append(
            ("provider (nodes)", *(", ".join(f"{k} {v}" for k, v in one.items()) for one in self.placement), "")
        )
        return rows


def bench(baseline: Path, pruned: Path, settings: BenchSettings, observer: Observer) -> Bench:
    """Compare two ONNX classifiers: latency, timed alternately, memory and, with data, accuracy and drop.

    If the test images have no labels, the second is compared with the predictions of the first.

    Raises:
        InputError: a file is not an ONNX classifier, the two differ in their input, or the preprocessing of images is unknown.
        MachineError: the requested provider does not run on this machine.
    """
    choice = choose_provider(settings.provider)
    sides = (read_classifier(baseline), read_classifier(pruned))
    for note in (choice.note, *sides[0].notes, *sides[1].notes):
        if note:
            observer.say(note)
    shapes = [_shape(side, other, settings.input_shape) for side, other in (sides, sides[::-1])]
    shape = shapes[0]
    if shapes[1] != shape:
        raise InputError(f"{baseline} takes images of {shape}, {pruned} of {shapes[1]}, so they cannot be compared.")
    batches = _batches(sides, settings.batches)
    accuracies = drop = measure = None
    if settings.data is not None:
        accuracies, drop, measure = _accuracies(sides, shape, settings, choice.provider, observer)
    timing = TimingSettings(choice.provider, settings.threads, settings.cuda_graphs, settings.seed)
    timing, trials = try_fused_biases([[baseline, pruned]], shape, batches[0], timing)
    comparisons: list[Comparison] = []
    with observed_conditions() as conditions:
        for batch in batches:
            with observer.stage(f"batch {batch}") as progress:
                comparisons += compare_latencies(baseline, [pruned], shape, batch, timing, progress)
    first = batches[0]
    with observer.stage("memory"):
        memory = [peak_memory(path, first, shape, choice.provider, timing.used_threads) for path in (baseline, pruned)]
        placement = [node_placement(side.path, choice.provider, side.feed(side.noise(first, shape))) for side in sides]
    for path, nodes in zip((baseline, pruned), placement, strict=True):
        away = sum(nodes.values()) - nodes[choice.provider]
        if away:
            observer.say(f"{away} of the {sum(nodes.values())} nodes of {path.name} do not run on {choice.provider}.")
    measured = {**conditions.to_json(), **timing_conditions(timing, trials)}
    return Bench(
        (baseline, pruned),
        choice.provider,
        tuple(comparisons),
        accuracies,
        drop,
        measure,
        (memory[0], memory[1]),
        (placement[0], placement[1]),
        measured,
    )


def _shape(side: Classifier, other: Classifier, given: tuple[int, ...] | None) -> Shape:
    """The image shape of a file, with free sizes from the options, its metadata, or the other file."""
    if given is None and None in side.image_shape:
        stored = read_metadata(side.path).get("input_shape")
        given = tuple(stored) if stored else None if None in other.image_shape else other.sizes()
    return side.sizes(given)


def _batches(sides: tuple[Classifier, Classifier], given: tuple[int, ...] | None) -> tuple[int, ...]:
    fixed = {side.batch: side.path for side in sides if side.batch is not None}
    if len(fixed) > 1:
        sizes = " and ".join(f"{path} takes batches of {batch} only" for batch, path in fixed.items())
        raise InputError(f"{sizes}, so no batch size works for both. Export one of them again with a free batch size.")
    for batch, path in fixed.items():
        if given is not None and set(given) != {batch}:
            raise InputError(f"{path} takes batches of {batch} only. Leave out --batches, or give {batch}.")
        return (batch,)
    return tuple(sorted(set(given or DEFAULT_BATCHES)))


def _accuracies(
    sides: tuple[Classifier, Classifier], shape: Shape, settings: BenchSettings, provider: str, observer: Observer
) -> tuple[tuple[Accuracy, Accuracy], Drop, str]:
    assert settings.data is not None
    preprocessing = _preprocessing(sides, shape, settings)
    splits = load_images(settings.data, preprocessing, seed=settings.seed)
    named = read_metadata(sides[0].path).get("class_names", ())
    if set(named) == set(splits.class_names):  # labels are in the order of the outputs
        splits = reorder_classes(splits, named)
    test, names = splits.test, splits.class_names or _class_names(sides[0])
    with observer.stage("accuracy") as progress:
        first = measure_accuracy(sides[0].path, test, names, provider, progress)
        if not test.labelled:
            for note in splits.notes:
                observer.say(note)
            observer.say(
                "The test images have no labels, so the second file is compared with the predictions of the first."
            )
            test = replace(test, labels=torch.from_numpy(first.predictions))
            first = accuracy_of(first.predictions, test, names)
        second = measure_accuracy(sides[1].path, test, names, provider, progress)
    measure = MEASURES["labels"] if test.labelled else "agreement with the first"
    return (first, second), measure_drop(first, second, test, settings.seed), measure


def _class_names(side: Classifier) -> tuple[str, ...]:
    """The index of each output as its name, if neither the data nor a file names the classes."""
    if side.classes is None:
        raise InputError(f"{side.path} leaves its number of classes open. Use test images with labels.")
    return tuple(f"class {index}" for index in range(side.classes))


def _preprocessing(sides: tuple[Classifier, Classifier], shape: Shape, settings: BenchSettings) -> Preprocessing:
    """The preprocessing for both: from the options, or from the first file that declares it."""
    mean, std, resize = settings.mean, settings.std, None
    for side in sides:
        if mean is None:
            metadata = read_metadata(side.path)
            mean, std, resize = (metadata.get(name) for name in ("mean", "std", "resize"))
    if mean is None and all(side.takes_pixels for side in sides):
        mean, std = (0.0,) * shape[0], (1.0,) * shape[0]  # they normalise by themselves
    if mean is None or std is None:
        raise InputError(f"{sides[0].path} does not declare how its images are normalised. Give --mean and --std.")
    if settings.input_shape is not None or not isinstance(resize, int):
        resize = None
    return Preprocessing(shape, tuple(map(float, mean)), tuple(map(float, std)), resize)
