"""The CUDA provider's fused biases (``fuse_conv_bias``), tried on every file before it is timed with them.

cuDNN then computes bias, addition and ReLU in the kernel of their convolution, which saves passes over the map. Not every
version, file and card runs with it, so a session with the option is compared with one without: its class scores must be finite
and the same within rounding, and it must not be slower. Files that are compared with each other share the choice.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

from ..runtime.bound_runs import BoundRuns, bind
from ..runtime.classifier import read_classifier
from ..runtime.providers import failure
from .latency import TimingSettings

AGREEMENT = 0.02
"""The largest difference of class scores, over the largest |score|: ten bits of TF32 or float16 through a deep network."""
NOT_SLOWER = 0.98
"""A file counts as slower below this speedup; all files of a group together below 1."""
WARM_UP_RUNS, TURNS, SECONDS = 3, 30, 2.0
"""Untimed runs, and the most timed turns and seconds for a pair of sessions."""


@dataclass(frozen=True)
class FusionTrial:
    """One file with fused biases against the same file without.

    ``difference`` of class scores over the largest |score|, and ``speedup`` of a run on the device; None where it was not
    measured. ``problem``: why the option was refused, empty if it was not. ``kept``: whether the file is timed with it.
    """

    file: str
    difference: float | None
    speedup: float | None
    problem: str
    kept: bool = False


def try_fused_biases(
    groups: Sequence[Sequence[Path]], input_shape: tuple[int, int, int], batch: int, settings: TimingSettings
) -> tuple[TimingSettings, tuple[FusionTrial, ...]]:
    """The settings with the files that are to run with fused biases, and what was tried.

    Args:
        groups: files that share the choice, such as the baseline and the pruned network in one precision. A group gets the
            option if no file of it has a problem and the geometric mean of their speedups is at least 1.
        settings: how the files are timed; on other providers than CUDA nothing is tried.

    Raises:
        InputError, MachineError: a file does not run even without the option.
    """
    if settings.provider != "cuda":
        return settings, ()
    found: list[FusionTrial] = []
    fused: list[Path] = []
    for group in groups:
        trials = [_tried(path, input_shape, batch, settings) for path in group]
        speedups = [trial.speedup for trial in trials if trial.speedup is not None and not trial.problem]
        kept = bool(group) and len(speedups) == len(group) and geometric_mean(speedups) >= 1
        found += [replace(trial, kept=kept) for trial in trials]
        fused += group if kept else ()
    return replace(settings, fused=(*settings.fused, *fused)), tuple(found)


def chosen_before(settings: TimingSettings, conditions: Mapping[str, Any], paths: Mapping[str, Path]) -> TimingSettings:
    """The settings with the choice that :func:`timing_conditions` recorded, for files ``paths`` by name."""
    rows = (conditions.get("cuda") or {"fused_biases": ()})["fused_biases"]
    return replace(settings, fused=tuple(paths[row["file"]] for row in rows if row["kept"] and row["file"] in paths))


def timing_conditions(settings: TimingSettings, trials: Sequence[FusionTrial]) -> Mapping[str, Any]:
    """The settings of a measurement, as a report's ``conditions`` name them; ``cuda`` is None on other providers."""
    cuda = None
    if settings.provider == "cuda":
        cuda = {"options": settings.cuda.to_dict(), "fused_biases": [asdict(trial) for trial in trials]}
    return {"threads": settings.used_threads, "cuda_graphs": settings.cuda_graphs, "cuda": cuda}


def _tried(path: Path, input_shape: tuple[int, int, int], batch: int, settings: TimingSettings) -> FusionTrial:
    classifier = read_classifier(path)
    images = classifier.noise(batch, input_shape, settings.seed)
    outputs, without = classifier.outputs(images), settings.session_of(path)
    plain = bind(classifier, images, outputs, settings.provider, without)
    expected = np.array(plain.end_to_end(), dtype=np.float64)
    try:
        option = replace(without, cuda=replace(without.cuda, fused_biases=True))
        fused = bind(classifier, images, outputs, settings.provider, option)
        found = np.array(fused.end_to_end(), dtype=np.float64)
        if not np.isfinite(found).all():
            return FusionTrial(path.name, None, None, "class scores are NaN or infinite")
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
        if not difference <= AGREEMENT:
            return FusionTrial(path.name, difference, None, f"class scores differ by more than {AGREEMENT:g}")
        speedup = _speedup(plain, fused)
    except Exception as error:  # the exceptions of ONNX Runtime, CUDA and cuDNN share no base class
        return FusionTrial(path.name, None, None, failure(error).replace(str(path), path.name))
    problem = "" if speedup >= NOT_SLOWER else f"slower than {NOT_SLOWER:g} of the speed without"
    return FusionTrial(path.name, difference, speedup, problem)


def _speedup(plain: BoundRuns, fused: BoundRuns) -> float:
    """The shortest run on the device without the option over the shortest with it, in turns."""
    for _ in range(WARM_UP_RUNS):
        plain.on_device()
        fused.on_device()
    best, start = [float("inf")] * 2, time.perf_counter()
    for turn in range(TURNS):
        if turn and time.perf_counter() - start > SECONDS:
            break
        for side, runs in enumerate((plain, fused)):
            before = time.perf_counter()
            runs.on_device()
            best[side] = min(best[side], time.perf_counter() - before)
    return best[0] / best[1]
