"""Settings of the measurement, the gates and the comparison with a release."""

import math
from dataclasses import dataclass, fields

from ..common.checks import check_one_of, check_positive, check_whole
from ..common.errors import UsageError
from ..common.settings import setting

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
INPUT_TYPES = ("float32", "uint8")
LATENCIES = ("end-to-end", "device")


@dataclass(frozen=True)
class MeasurementSettings:
    """How the exported files are measured, and in which precisions besides fp32 they are written.

    ``threads`` of an operator on the CPU while latency is measured; 0 for all cores but one, which is left to other processes.
    ``cuda_graphs``: time replayed CUDA graphs; needs CUDA or TensorRT. ``input``: the type of the files' input.
    ``latency_of``: whether gates and budgets count the copies to and from the device. ``torch_times``: None for GPUs only.
    """

    provider: str = setting("auto", "Execution provider of ONNX Runtime: auto, cpu, cuda, tensorrt or openvino.")
    latency_batch: int = setting(1, "Batch size for the speedup gate.")
    batches: tuple[int, ...] = setting((1, 32), "Batch sizes to time.")
    precisions: tuple[str, ...] = setting(
        ("fp32",),
        "Precisions to export besides fp32: fp16, int8. A speed-up is planned and judged in the first.",
        flag="precision",
    )
    threads: int = setting(0, "Threads of a session on the CPU while it is timed; 0 for all cores but one.")
    cuda_graphs: bool = setting(False, "Measure latency with replayed CUDA graphs.")
    input: str = setting(
        "float32",
        "What the exported files take: float32, normalised images, or uint8, raw pixels normalised in the file.",
    )
    latency_of: str = setting(
        "end-to-end",
        "What the speedup gate and a latency budget mean: end-to-end, with the copies to and from the device, or device.",
    )
    torch_times: bool | None = setting(
        None, "Also time the networks in torch, eager and compiled, and on TensorRT; by default on a GPU only."
    )

    def __post_init__(self) -> None:
        check_one_of("provider", self.provider, PROVIDERS)
        check_whole("latency_batch", self.latency_batch, 1)
        check_whole("threads", self.threads, 0)
        check_one_of("input", self.input, INPUT_TYPES)
        check_one_of("latency_of", self.latency_of, LATENCIES)
        for size in self.batches:
            check_whole("each of batches", size, 1)
        for name in self.precisions:
            check_one_of("each of precisions", name, PRECISIONS)
        if self.cuda_graphs and self.provider in ("cpu", "openvino"):
            raise UsageError(f"cuda_graphs need provider cuda or tensorrt (got {self.provider}).")

    @property
    def lower_precisions(self) -> tuple[str, ...]:
        """The precisions besides fp32, in the order of ``PRECISIONS``."""
        return tuple(name for name in PRECISIONS[1:] if name in self.precisions)

    @property
    def planned_precision(self) -> str:
        """The precision that a budget of time is planned and judged in: the first."""
        return self.precisions[0] if self.precisions else "fp32"

    @property
    def measured_batches(self) -> tuple[int, ...]:
        """All batch sizes to time, including that of the gates, in ascending order."""
        return tuple(sorted({*self.batches, self.latency_batch}))


@dataclass(frozen=True)
class GateSettings:
    """Thresholds of a run; None for a gate that is not set."""

    require_drop_below: float | None = setting(
        None, "Fail unless the upper bound of the drop is below this many points."
    )
    require_speedup: float | None = setting(None, "Fail unless the lower bound of the speedup reaches this.")
    require_size_below: float | None = setting(None, "Fail unless model.onnx has fewer megabytes than this.")
    require_provider: str | None = setting(
        None, "Exit with code 4 unless this provider runs: cpu, cuda, tensorrt or openvino."
    )

    def __post_init__(self) -> None:
        if self.require_drop_below is not None and not math.isfinite(self.require_drop_below):
            raise UsageError(f"require_drop_below must be a number of points (got {self.require_drop_below}).")
        check_positive("require_speedup", self.require_speedup)
        check_positive("require_size_below", self.require_size_below)
        if self.require_provider is not None:
            check_one_of("require_provider", self.require_provider, PROVIDERS[1:])


@dataclass(frozen=True)
class ReleaseSettings:
    """The report of the last release, ``baseline`` (a report.json or its folder, or None), and the allowed regressions.

    They are in points of accuracy and in percent of latency, size of the ONNX file and MACs. Without ``baseline_latency``,
    latency is not compared, and the release may come from another machine.
    """

    baseline: str | None = setting(None, "report.json of the last release, or its folder; fail on regressions.")
    allow_accuracy_regression: float = setting(1.0, "Allowed loss of accuracy against --baseline, in points.")
    allow_latency_regression: float = setting(10.0, "Allowed increase of latency against --baseline, in percent.")
    allow_size_regression: float = setting(
        5.0, "Allowed increase of the ONNX file's size against --baseline, in percent."
    )
    allow_macs_regression: float = setting(5.0, "Allowed increase of MACs against --baseline, in percent.")
    baseline_latency: bool = setting(True, "Also compare latency with --baseline, which needs the same machine.")

    def __post_init__(self) -> None:
        for name in ("accuracy", "latency", "size", "macs"):
            value = getattr(self, f"allow_{name}_regression")
            if not 0 <= value < math.inf:
                raise UsageError(f"allow_{name}_regression must be a number of at least 0 (got {value}).")
        if self.baseline is None and any(getattr(self, entry.name) != entry.default for entry in fields(self)):
            raise UsageError("the limits of regressions need the report of a release: give it with --baseline.")
