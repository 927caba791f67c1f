"""The sections of a recipe: frozen dataclasses that validate when they are made."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import UsageError

REPAIRS = ("none", "mean", "bn", "reconstruct", "distill")
ALLOCATIONS = ("sensitivity", "uniform")
BUDGETS = ("macs", "params", "size", "latency", "max_drop")
DEVICES = ("auto", "cpu", "cuda")
PROVIDERS = ("auto", "cpu", "cuda", "tensorrt", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")


def check_fraction(name: str, value: float | None) -> None:
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and 0 < value < 1):
        raise UsageError(f"{name} must be between 0 and 1, the fraction that is left (got {value}).")


def check_positive(name: str, value: float | None) -> None:
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise UsageError(f"{name} must be above 0 (got {value}).")


def check_whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least} (got {value}).")


def check_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)} (got {value!r}).")


@dataclass(frozen=True)
class ModelSettings:
    """Which network, and what it expects. ``input_shape`` is (channels, height, width)."""

    model: str = "digits"
    weights: str | None = None
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.input_shape is not None:
            if len(self.input_shape) != 3:
                raise UsageError(f"input_shape must be channels,height,width (got {in_csv(self.input_shape)}).")
            for size in self.input_shape:
                check_whole("each number of input_shape", size, 1)
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std belong together: give both or neither.")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise UsageError(
                    f"mean has {len(self.mean)} numbers and std has {len(self.std)}; one per channel each."
                )
            for value in self.mean:
                if not math.isfinite(value):
                    raise UsageError(f"mean must be finite numbers (got {in_csv(self.mean)}).")
            for value in self.std:
                check_positive("each number of std", value)


@dataclass(frozen=True)
class DataSettings:
    """Which images; how many training images rank and repair; the share of ``train/`` that validates if no ``val/``.

    ``keep_classes`` or ``drop_classes``: the classes that matter, or those that do not, by name; without either, all matter.
    """

    data: str | None = None
    calibration: int = 1000
    validation_share: float = 0.1
    keep_classes: tuple[str, ...] | None = None
    drop_classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.keep_classes is not None and self.drop_classes is not None:
            raise UsageError("keep_classes and drop_classes say the same in two ways; give one.")
        for name in ("keep_classes", "drop_classes"):
            given = getattr(self, name)
            if given is not None and (not given or len(set(given)) != len(given)):
                raise UsageError(f"{name} must name one class or more, each once (got {', '.join(given) or 'none'}).")
        check_whole("calibration", self.calibration, 2)
        check_fraction("validation_share", self.validation_share)


@dataclass(frozen=True)
class RankingSettings:
    """The ranker, by its registered name (``secateur rankers``)."""

    rank_by: str = "gap"


@dataclass(frozen=True)
class AgicSettings:
    """The work that ``--rank-by agic`` may do: calibration images that become graphs, training steps of the graph encoder and
    of the scores; the incoming edges that a node keeps, and the images that stand in for kernels left out. ``permutations`` of
    kernels by which Shapley values without a closed form (behind GroupNorm, LayerNorm, attention) are estimated, at a price: 0
    leaves those links out."""

    images: int = 1000
    encoder_steps: int = 300
    scoring_steps: int = 480
    edges: int = 16
    background: int = 32
    permutations: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "scoring_steps", "edges", "background"):
            check_whole(f"agic {name}", getattr(self, name), 1)
        for name in ("encoder_steps", "permutations"):
            check_whole(f"agic {name}", getattr(self, name), 0)


@dataclass(frozen=True)
class PicnnSettings:
    """PICNN's pathway (Guo et al., AAAI 2024): its target layer, how filters are assigned to classes, and how both are trained.

    Where the paper and its published code differ the defaults are the paper's; the code's choices are ``loss_over = "right"``
    (only images whose pseudo-label is right), ``complement = "drawn"`` (ACC3 by masks of their own draw instead of ACC2's
    opposite) and ``initial = "softmax"`` (P's parameters are a softmax already).

    ``target``: a layer or block; the last map in front of the head if None. ``filters`` or ``filters_per_class`` put a new
    layer of that many filters behind it (the code has 64, the paper 12.8 a class). ``masks``: bernoulli (PICNN), gumbel, csg
    or std (P is not learned). ``weight`` is lambda. ``labels = "true"`` takes the cluster of the label, which leaks it
    (figure 4). ``membership_rate``: the learning rate of P over that of the rest. ``post_hoc_steps`` and ``post_hoc_rate``
    (Adam) learn P alone. ``draws``: masks drawn an image for ACC2 and ACC3. ``mis_images``: at most so many for MIS.
    ``epochs``, ``learning_rate``, ``final_learning_rate``, ``weight_decay`` and ``flip`` are for ``train-picnn`` alone: a
    ranking learns only P, and ``--pathway picnn`` trains by ``[recovery]``.
    """

    target: str | None = None
    filters: int | None = None
    filters_per_class: float | None = None
    masks: str = "bernoulli"
    weight: float = 2.0
    labels: str = "pseudo"
    loss_over: str = "all"
    complement: str = "opposite"
    initial: str = "normal"
    gate_penalty: float = 0.1
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    weight_decay: float = 1e-4
    membership_rate: float = 100.0
    flip: bool | None = None
    post_hoc_steps: int = 500
    post_hoc_rate: float = 0.05
    draws: int = 5
    mis_images: int = 2000

    def __post_init__(self) -> None:
        if self.filters is not None and self.filters_per_class is not None:
            raise UsageError("filters and filters_per_class both say how wide the new layer is; give one.")
        if self.filters is not None:
            check_whole("picnn filters", self.filters, 2)
        check_one_of("picnn masks", self.masks, ("bernoulli", "gumbel", "csg", "std"))
        check_one_of("picnn labels", self.labels, ("pseudo", "true"))
        check_one_of("picnn loss_over", self.loss_over, ("all", "right"))
        check_one_of("picnn complement", self.complement, ("opposite", "drawn"))
        check_one_of("picnn initial", self.initial, ("normal", "softmax"))
        for name in ("epochs", "post_hoc_steps"):
            check_whole(f"picnn {name}", getattr(self, name), 0)
        check_whole("picnn batch_size", self.batch_size, 2)
        for name in ("draws", "mis_images"):
            check_whole(f"picnn {name}", getattr(self, name), 1)
        for name in ("learning_rate", "final_learning_rate", "membership_rate", "post_hoc_rate", "filters_per_class"):
            check_positive(f"picnn {name}", getattr(self, name))
        for name in ("weight", "weight_decay", "gate_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"picnn {name} must not be negative (got {getattr(self, name)}).")


@dataclass(frozen=True)
class BudgetSettings:
    """What may be left, as a fraction of the baseline, or what may be lost; the alignment of widths; how the cut is shared out.

    ``macs``, ``params``, ``size`` (bytes of weights and running statistics), ``latency`` (of the ONNX file, planned by a
    measured table and then measured) or ``max_drop``: the most points of top-1 accuracy
    to lose on validation images, by the upper end of the interval, for as few MACs as can be. ``allocation``: sensitivity
    (measured, the widths that lose least) or uniform (equal shares). ``rounds``: how often to explain, cut and repair.

    Examples:
        >>> import secateur
        >>> budget = secateur.BudgetSettings(params=0.25)
        >>> budget.resource, budget.fraction
        ('params', 0.25)
    """

    macs: float | None = None
    params: float | None = None
    size: float | None = None
    latency: float | None = None
    max_drop: float | None = None
    round_to: str | int = "auto"
    allocation: str = "sensitivity"
    rounds: int = 1

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are {len(given)} budgets; give one.")
        for name in ("macs", "params", "size", "latency"):
            check_fraction(name, getattr(self, name))
        if self.max_drop is not None and not 0 < self.max_drop <= 100:
            raise UsageError(f"max_drop must be points of accuracy above 0, up to 100 (got {self.max_drop}).")
        check_whole("rounds", self.rounds, 1)
        if self.latency is not None and self.rounds > 1:
            raise UsageError(
                f"latency is planned, measured and planned again for one cut, so rounds must be 1 (got {self.rounds}). Give "
                "--macs for several rounds."
            )
        check_one_of("allocation", self.allocation, ALLOCATIONS)
        if isinstance(self.round_to, str):
            if self.round_to != "auto":
                raise UsageError(f"round_to must be auto or a whole number (got {self.round_to!r}).")
        else:
            check_whole("round_to", self.round_to, 1)

    @property
    def resource(self) -> str:
        """``macs``, ``params``, ``size`` or ``latency``; MACs where none is given."""
        return next((name for name in ("params", "size", "latency") if getattr(self, name) is not None), "macs")

    @property
    def fraction(self) -> float:
        """The fraction of the resource that may be left; a half where nothing is given."""
        chosen: float | None = getattr(self, self.resource)
        return 0.5 if chosen is None else chosen

    def of(self, fraction: float) -> "BudgetSettings":
        """The same with another fraction of its resource."""
        return replace(self, **{**dict.fromkeys(BUDGETS), self.resource: fraction})  # type: ignore[arg-type]


@dataclass(frozen=True)
class RepairSettings:
    """The repair without labels that follows the cut."""

    repair: str = "reconstruct"

    def __post_init__(self) -> None:
        check_one_of("repair", self.repair, REPAIRS)


@dataclass(frozen=True)
class RecoverySettings:
    """Fine-tuning with distillation. ``flip`` None: mirror colour images, leave grey ones (digits, letters) as they are.

    ``pathway``: none, or picnn to train with PICNN's interpretation loss too, by the settings under ``picnn``.

    Examples:
        >>> import secateur
        >>> secateur.RecoverySettings(epochs=1, learning_rate=0.02).distillation
        0.7
    """

    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    temperature: float = 2.0
    distillation: float = 0.7
    flip: bool | None = None
    pathway: str = "none"

    def __post_init__(self) -> None:
        check_whole("epochs", self.epochs, 0)
        check_whole("batch_size", self.batch_size, 2)
        check_positive("learning_rate", self.learning_rate)
        check_positive("temperature", self.temperature)
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay must not be negative (got {self.weight_decay}).")
        check_one_of("pathway", self.pathway, ("none", "picnn"))
        if not 0 <= self.distillation <= 1:
            raise UsageError(f"distillation must be between 0 and 1 (got {self.distillation}).")


@dataclass(frozen=True)
class MeasurementSettings:
    """How the shipped files are measured, and in which precisions they are shipped; fp32 always is.

    ``threads``: of an operator on the CPU while latency is measured; 0 for all cores but one, so that what else runs on the
    machine has a core. ``cuda_graphs``: latency by replayed graphs; needs CUDA or TensorRT.
    """

    provider: str = "auto"
    latency_batch: int = 1
    batches: tuple[int, ...] = (1, 32)
    precisions: tuple[str, ...] = ("fp32",)
    threads: int = 0
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        check_one_of("provider", self.provider, PROVIDERS)
        check_whole("latency_batch", self.latency_batch, 1)
        check_whole("threads", self.threads, 0)
        for size in self.batches:
            check_whole("each of batches", size, 1)
        for name in self.precisions:
            check_one_of("each of precisions", name, PRECISIONS)
        if self.cuda_graphs and self.provider in ("cpu", "openvino"):
            raise UsageError(f"cuda_graphs need provider cuda or tensorrt (got {self.provider}).")

    @property
    def lower_precisions(self) -> tuple[str, ...]:
        """What is shipped beside fp32, in the order of ``PRECISIONS``."""
        return tuple(name for name in PRECISIONS[1:] if name in self.precisions)

    @property
    def measured_batches(self) -> tuple[int, ...]:
        """Every batch size to time, the gate's own included, in ascending order."""
        return tuple(sorted({*self.batches, self.latency_batch}))


@dataclass(frozen=True)
class EvidencePageSettings:
    """The page on kernels and images. ``page``: whether it is written. ``evidence_images`` validation images are explained on
    it, and ``misclassified`` of those that the network gets wrong. ``evidence_kernels`` of each layer are shown with patches;
    None: as many as keep the page below 20 MB."""

    page: bool = True
    evidence_images: int = 10
    misclassified: int = 0
    evidence_kernels: int | None = None

    def __post_init__(self) -> None:
        for name in ("evidence_images", "misclassified"):
            check_whole(name, getattr(self, name), 0)
        if self.evidence_kernels is not None:
            check_whole("evidence_kernels", self.evidence_kernels, 1)


@dataclass(frozen=True)
class GateSettings:
    """Thresholds of the CI step. None: not asked for."""

    require_drop_below: float | None = None
    require_speedup: float | None = None
    require_size_below: float | None = None
    require_provider: str | None = None

    def __post_init__(self) -> None:
        if self.require_drop_below is not None and not math.isfinite(self.require_drop_below):
            raise UsageError(f"require_drop_below must be a number of points (got {self.require_drop_below}).")
        check_positive("require_speedup", self.require_speedup)
        check_positive("require_size_below", self.require_size_below)
        if self.require_provider is not None:
            check_one_of("require_provider", self.require_provider, PROVIDERS[1:])


@dataclass(frozen=True)
class ReleaseSettings:
    """What a run is held to by the report of the last release, ``baseline`` (a report.json or its folder; None: by none).

    How much worse it may be: points of accuracy, percent of latency, of the ONNX file's bytes and of MACs. Without
    ``baseline_latency`` latency is left out, and the release may come from another machine.
    """

    baseline: str | None = None
    allow_accuracy_regression: float = 1.0
    allow_latency_regression: float = 10.0
    allow_size_regression: float = 5.0
    allow_macs_regression: float = 5.0
    baseline_latency: bool = True

    def __post_init__(self) -> None:
        for name in ("accuracy", "latency", "size", "macs"):
            value = getattr(self, f"allow_{name}_regression")
            if not 0 <= value < math.inf:
                raise UsageError(f"allow_{name}_regression must be a number of at least 0 (got {value}).")
        if self.baseline is None and any(getattr(self, entry.name) != entry.default for entry in fields(self)):
            raise UsageError("what a regression may be belongs to a release: give its report with --baseline.")


def in_csv(values: tuple[Any, ...]) -> str:
    return ",".join(str(value) for value in values)
