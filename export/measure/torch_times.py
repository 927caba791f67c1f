"""Times of torch beside those of ONNX Runtime: eager, compiled, and TensorRT where it is at hand.

All runtimes take turns in one run, as files do: baseline and pruned network in ONNX Runtime on the run's provider, in torch
eagerly, by ``torch.compile``, and in ONNX Runtime on TensorRT. What a runtime cannot do becomes a note, and so does a runtime
whose class scores are not those of the ONNX file.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common.progress import Progress, silent
from ...network.hooks import pick_logits
from ...network.network import Network
from ..runtime.bound_runs import BoundRuns, bind
from ..runtime.classifier import Classifier, read_classifier
from ..runtime.provider_choice import why_not
from ..runtime.providers import ON_GPU, failure
from .latency import Comparison, TimingSettings, compare_runs

ONNX_RUNTIME, EAGER, COMPILED, TENSORRT = "onnxruntime", "torch", "torch.compile", "tensorrt"
TYPES = {"fp32": torch.float32, "fp16": torch.float16}
"""The precisions that torch is timed in; it has no counterpart of the int8 files."""
AGREEMENT = 0.02
"""The largest difference of class scores from the ONNX file's, over the largest |score|, in either precision."""
Pair = tuple[BoundRuns, BoundRuns]


@dataclass(frozen=True)
class TorchTask:
    """What is timed: the ``networks`` (baseline, pruned), and their files by precision, on the provider of ``settings``."""

    networks: tuple[Network, Network]
    files: Mapping[str, tuple[Path, Path]]
    settings: TimingSettings


@dataclass(frozen=True)
class RuntimeRow:
    """The baseline against the pruned network in one runtime and precision."""

    runtime: str
    precision: str
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        found = self.comparison
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "batch": found.batch,
            "baseline": asdict(found.baseline),
            "pruned": asdict(found.pruned),
            "speedup": asdict(found.ratio),
            "device_speedup": asdict(found.meant("device")),
        }


@dataclass(frozen=True)
class TorchTimes:
    """The ``rows`` that were measured, and ``notes`` on what could not be."""

    rows: tuple[RuntimeRow, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"rows": [row.to_json() for row in self.rows], "notes": list(self.notes)}


def measure_torch_times(task: TorchTask, batches: Sequence[int], progress: Progress = silent) -> TorchTimes:
    """Time both networks in every runtime that is at hand, at every batch size, in every precision of ``TYPES`` with files.

    On a GPU, torch runs channels last, and with ``cuda_graphs`` torch.compile replays graphs too (``reduce-overhead``).

    Raises:
        InputError, MachineError: an ONNX file does not run on the provider.
    """
    rows: list[RuntimeRow] = []
    notes: list[str] = []
    cases = [(precision, batch) for precision in TYPES if precision in task.files for batch in batches]
    with _as_onnx_runtime(task.settings.used_threads):
        for done, (precision, batch) in enumerate(cases):
            found, problems = _measured(task, precision, batch)
            rows += found
            notes += [f"{name}, {precision}, batch {batch}: {problem}" for name, problem in problems.items()]
            progress(done + 1, len(cases))
    return TorchTimes(tuple(rows), tuple(notes))


def _measured(task: TorchTask, precision: str, batch: int) -> tuple[list[RuntimeRow], dict[str, str]]:
    """The rows of one precision and batch size, and the problems by runtime."""
    settings, shape = task.settings, task.networks[0].input_shape
    classifiers = [read_classifier(path) for path in task.files[precision]]
    images = classifiers[0].noise(batch, shape, settings.seed)

    def on_onnx_runtime(side: int, how: TimingSettings = settings) -> BoundRuns:
        classifier = classifiers[side]
        return bind(classifier, images, classifier.outputs(images), how.provider, how.session_of(classifier.path))

    def on_tensorrt(side: int) -> BoundRuns:
        return on_onnx_runtime(side, replace(settings, provider="tensorrt"))

    def in_torch(side: int, compiled: bool = False) -> BoundRuns:
        whole = _whole(task.networks[side], classifiers[side], TYPES[precision], settings)
        return _torch_runs(_compiled(whole, settings) if compiled else whole, images, _device(settings))

    makers: dict[str, Callable[[int], BoundRuns]] = {EAGER: in_torch, COMPILED: lambda side: in_torch(side, True)}
    if settings.provider == "cuda" and not why_not("tensorrt"):
        makers[TENSORRT] = on_tensorrt
    expected = [np.array(on_onnx_runtime(side).end_to_end()) for side in (0, 1)]
    pairs, problems = _open(makers, expected)
    names = [ONNX_RUNTIME, *pairs]
    kept = [runs for pair in pairs.values() for runs in pair]

    def opened(side: int) -> BoundRuns:
        return on_onnx_runtime(side) if side < 2 else kept[side - 2]

    turns = [(2 * at, 2 * at + 1) for at in range(len(names))]
    found = compare_runs(opened, 2 * len(names), batch, settings.seed, pairs=turns)
    rows = []
    for name, one in zip(names, found, strict=True):
        # Only ONNX Runtime opens new sessions in every block; the others have one, whose luck no block shows.
        if name != ONNX_RUNTIME:
            floor, on_device = one.noise_floor, one.meant("device")
            one = replace(one, ratio=one.ratio.widened(floor), device_ratio=on_device.widened(floor), sessions=1)
        rows.append(RuntimeRow(name, precision, one))
    return rows, problems


def _open(
    makers: Mapping[str, Callable[[int], BoundRuns]], expected: Sequence[NDArray[Any]]
) -> tuple[dict[str, Pair], dict[str, str]]:
    """Both networks in each runtime, ready to run, and why a runtime is left out."""
    pairs: dict[str, Pair] = {}
    problems: dict[str, str] = {}
    torch.compiler.reset()  # it keeps at most eight variants of a forward, and then falls back to eager
    for name, make in makers.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pair = make(0), make(1)
                scores = [np.array(runs.end_to_end()) for runs in pair]
        except Exception as error:  # compilers, user code in half precision and TensorRT raise what they like
            problems[name] = f"{type(error).__name__}: {failure(error)}"
            continue
        differences = [
            float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))
            for found, wanted in zip(scores, expected, strict=True)
        ]
        if all(difference <= AGREEMENT for difference in differences):  # not a number neither
            pairs[name] = pair
        else:
            problems[name] = f"class scores differ from the ONNX file's by {max(differences):.2g} of the largest"
    return pairs, problems


class _Whole(nn.Module):
    """A network as its ONNX file is: from float32 images or pixels to class scores in float32."""

    def __init__(self, network: Network, pixels: bool, dtype: torch.dtype, channels_last: bool) -> None:
        super().__init__()
        self.module, self.dtype = network.copy().module.to(dtype), dtype
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        mean, std = (torch.tensor(values) for values in (network.preprocessing.mean, network.preprocessing.std))
        self.pixels = pixels
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1 / (255 * std)).view(1, -1, 1, 1).to(dtype))
        self.register_buffer("shift", (-mean / std).view(1, -1, 1, 1).to(dtype))

    def forward(self, images: Tensor) -> Tensor:
        values = images.to(self.dtype, memory_format=self.layout)
        if self.pixels:
            values = values * self.scale + self.shift
        return pick_logits(self.module(values)).float()


def _whole(network: Network, classifier: Classifier, dtype: torch.dtype, settings: TimingSettings) -> nn.Module:
    device = _device(settings)
    on_gpu = device == "cuda"
    whole = _Whole(network, classifier.takes_pixels, dtype, on_gpu).eval().to(device)
    return whole.to(memory_format=torch.channels_last) if on_gpu else whole


def _compiled(whole: nn.Module, settings: TimingSettings) -> Callable[[Tensor], Tensor]:
    mode = "reduce-overhead" if settings.cuda_graphs else "default"
    found: Callable[[Tensor], Tensor] = torch.compile(whole, dynamic=False, mode=mode)
    return found


def _torch_runs(run: Callable[[Tensor], Tensor], images: NDArray[Any], device: str) -> BoundRuns:
    """Both runs of a batch of images ``[n, C, H, W]`` on the host."""
    host = torch.from_numpy(images)
    given = host.to(device)

    def end_to_end() -> NDArray[Any]:
        with torch.no_grad():
            return run(host.to(device)).cpu().numpy()

    def on_device() -> None:
        with torch.no_grad():
            run(given)
        if device == "cuda":
            torch.cuda.synchronize()

    return BoundRuns(end_to_end, on_device)


def _device(settings: TimingSettings) -> str:
    return "cuda" if settings.provider in ON_GPU else "cpu"


@contextmanager
def _as_onnx_runtime(threads: int) -> Iterator[None]:
    """Let torch use as many threads, and search for the algorithms of convolutions, as ONNX Runtime does."""
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.benchmark = before[1]
