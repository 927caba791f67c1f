"""Settings of the budget, the repair and the fine-tuning."""

import math
from dataclasses import dataclass, replace

from ..common.checks import check_fraction, check_one_of, check_positive, check_whole
from ..common.errors import UsageError
from ..common.settings import setting

REPAIRS = ("none", "mean", "bn", "reconstruct", "distill")
ALLOCATIONS = ("sensitivity", "uniform")
TIME_MODELS = ("table", "roofline")
BUDGETS = ("speedup", "latency", "macs", "params", "size", "max_drop")


@dataclass(frozen=True)
class BudgetSettings:
    """The budget of a cut, at most one of six; the alignment of widths; how the cut is shared among groups.

    Attributes:
        speedup: how many times as fast as the baseline's the ONNX file is to be, above 1; planned with a measured table, then
            measured.
        latency: the inverse of ``speedup``: the fraction of the baseline's latency that may be left.
        macs: the fraction of the MACs that may be left. This budget, at a half, is used if none is given.
        params: the fraction of the parameters that may be left.
        size: the fraction of the bytes of weights and running statistics that may be left.
        max_drop: the points of top-1 accuracy on validation images that may be lost, by the upper end of the interval, for as
            few MACs as possible.
        round_to: the multiple that widths are rounded to.
        allocation: ``sensitivity`` (the widths with the least measured loss) or ``uniform`` (equal shares).
        time_model: what a speed-up is planned with: a ``table`` of measured operations, or a ``roofline``, which is fitted in
            half a minute. What is shipped is measured in either case.
        rounds: the number of rounds of explaining, cutting and repairing.
        best_effort: whether a budget that is missed is accepted, and the network cut as far as it can be.

    Examples:
        >>> import secateur
        >>> budget = secateur.BudgetSettings(params=0.25)
        >>> budget.resource, budget.fraction
        ('params', 0.25)
    """

    speedup: float | None = setting(None, "Times as fast as the baseline, measured at --latency-batch: 1.5, say.")
    latency: float | None = setting(
        None, "Fraction of the measured latency that may be left: the inverse of --speedup."
    )
    macs: float | None = setting(None, "Fraction of the MACs that may be left.")
    params: float | None = setting(None, "Fraction of the parameters that may be left.")
    size: float | None = setting(None, "Fraction of the bytes of weights that may be left.")
    max_drop: float | None = setting(
        None,
        "Points of validation accuracy that may be lost, for as few MACs as possible.",
    )
    round_to: str | int = setting("auto", "Multiple to round widths to; auto is a power of two up to 32, by width.")
    allocation: str = setting("sensitivity", "How the cut is shared among groups: sensitivity (measured) or uniform.")
    time_model: str = setting(
        "table", "What a speed-up is planned with: table (operations measured) or roofline (quicker)."
    )
    rounds: int = setting(1, "Rounds of explaining, cutting and repairing on the way to the budget.")
    best_effort: bool = setting(
        False, "Get as close as possible to a budget that cannot be reached, instead of failing with exit code 1."
    )

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are {len(given)} budgets; give one.")
        for name in ("macs", "params", "size", "latency"):
            check_fraction(name, getattr(self, name))
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise UsageError(f"speedup must be above 1, times as fast as the baseline (got {self.speedup:g}).")
        if self.max_drop is not None and not 0 < self.max_drop <= 100:
            raise UsageError(f"max_drop must be points of accuracy above 0, up to 100 (got {self.max_drop}).")
        if self.max_drop is not None and self.best_effort:
            raise UsageError(
                "best_effort is for a budget of speedup, latency, macs, params or size: with max_drop the network stays as it "
                "is where no cut keeps to the drop. Give one of the two."
            )
        check_whole("rounds", self.rounds, 1)
        if self.by_time and self.rounds > 1:
            raise UsageError(
                f"a speed-up is planned, measured and planned again for one cut, so rounds must be 1 (got {self.rounds}). Use "
                "--macs for several rounds."
            )
        check_one_of("allocation", self.allocation, ALLOCATIONS)
        check_one_of("time_model", self.time_model, TIME_MODELS)
        if isinstance(self.round_to, str):
            if self.round_to != "auto":
                raise UsageError(f"round_to must be auto or a whole number (got {self.round_to!r}).")
        else:
            check_whole("round_to", self.round_to, 1)

    @property
    def by_time(self) -> bool:
        """Whether the budget is measured time: a speed-up or a latency."""
        return self.speedup is not None or self.latency is not None

    @property
    def resource(self) -> str:
        """``macs``, ``params``, ``size`` or ``latency``; ``macs`` if none is given."""
        if self.by_time:
            return "latency"
        return next((name for name in ("params", "size") if getattr(self, name) is not None), "macs")

    @property
    def fraction(self) -> float:
        """The fraction of the resource that may be left; a half if no budget is given."""
        if self.speedup is not None:
            return 1 / self.speedup
        chosen: float | None = getattr(self, self.resource)
        return 0.5 if chosen is None else chosen

    def of(self, fraction: float) -> "BudgetSettings":
        """A copy with another fraction of the same resource."""
        return replace(self, **{**dict.fromkeys(BUDGETS), self.resource: fraction})  # type: ignore[arg-type]


@dataclass(frozen=True)
class RepairSettings:
    """The repair without labels that follows the cut."""

    repair: str = setting(
        "reconstruct", "Repair without labels: none, mean, bn, reconstruct (least squares) or distill."
    )

    def __post_init__(self) -> None:
        check_one_of("repair", self.repair, REPAIRS)


@dataclass(frozen=True)
class RecoverySettings:
    """Fine-tuning with distillation.

    ``flip``: None mirrors colour images only, since grey ones are often digits or letters. ``pathway``: ``picnn`` adds PICNN's
    interpretation loss, by the settings under ``picnn``.

    Examples:
        >>> import secateur
        >>> secateur.RecoverySettings(epochs=1, learning_rate=0.02).distillation
        0.7
    """

    epochs: int = setting(3, "Epochs of fine-tuning with distillation; 0 for none.")
    batch_size: int = setting(64, "Images in a step of the fine-tuning.")
    learning_rate: float = setting(0.01, "Peak learning rate of the fine-tuning.")
    weight_decay: float = setting(5e-4, "Weight decay of the fine-tuning.")
    temperature: float = setting(2.0, "Temperature of the distillation.")
    distillation: float = setting(0.7, "Weight of the distillation loss; the rest is cross-entropy with the labels.")
    flip: bool | None = setting(None, "Mirror images in fine-tuning; by default colour images only.")
    pathway: str = setting(
        "none", "none, or picnn: fine-tune with PICNN's loss too, so that filters keep to their classes."
    )

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
