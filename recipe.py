"""The settings of a run: frozen, validated dataclasses that turn into TOML and back.

Every section validates when it is made. A wrong value from an option is a usage error; the same value in a recipe file,
or a key that does not exist, is bad input that names the file.
"""

import difflib
import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, get_type_hints

import tomli_w

from .errors import InputError, UsageError

REPAIRS = ("none", "mean", "bn", "reconstruct", "distill")
ALLOCATIONS = ("sensitivity", "uniform")
BUDGETS = ("macs", "params", "size", "max_drop")
DEVICES = ("auto", "cpu", "cuda")
PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")


def _fraction(name: str, value: float | None) -> None:
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and 0 < value < 1):
        raise UsageError(f"{name} must be between 0 and 1, the fraction that is left (got {value}).")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise UsageError(f"{name} must be above 0 (got {value}).")


def _whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least} (got {value}).")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
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
                raise UsageError(f"input_shape must be channels,height,width (got {_csv(self.input_shape)}).")
            for size in self.input_shape:
                _whole("each number of input_shape", size, 1)
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std belong together: give both or neither.")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise UsageError(
                    f"mean has {len(self.mean)} numbers and std has {len(self.std)}; one per channel each."
                )
            for value in self.mean:
                if not math.isfinite(value):
                    raise UsageError(f"mean must be finite numbers (got {_csv(self.mean)}).")
            for value in self.std:
                _positive("each number of std", value)


@dataclass(frozen=True)
class DataSettings:
    """Which images; how many training images rank and repair; the share of ``train/`` that validates if no ``val/``."""

    data: str | None = None
    calibration: int = 1000
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        _whole("calibration", self.calibration, 2)
        _fraction("validation_share", self.validation_share)


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
            _whole(f"agic {name}", getattr(self, name), 1)
        for name in ("encoder_steps", "permutations"):
            _whole(f"agic {name}", getattr(self, name), 0)


@dataclass(frozen=True)
class BudgetSettings:
    """What may be left, as a fraction of the baseline, or what may be lost; the alignment of widths; how the cut is shared out.

    ``macs``, ``params``, ``size`` (bytes of weights and running statistics) or ``max_drop``: the most points of top-1 accuracy
    to lose on validation images, by the upper end of the interval, for as few MACs as can be. ``allocation``: sensitivity
    (measured, the widths that lose least) or uniform (equal shares). ``rounds``: how often to explain, cut and repair.
    """

    macs: float | None = None
    params: float | None = None
    size: float | None = None
    max_drop: float | None = None
    round_to: str | int = "auto"
    allocation: str = "sensitivity"
    rounds: int = 1

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are {len(given)} budgets; give one.")
        for name in ("macs", "params", "size"):
            _fraction(name, getattr(self, name))
        if self.max_drop is not None and not 0 < self.max_drop <= 100:
            raise UsageError(f"max_drop must be points of accuracy above 0, up to 100 (got {self.max_drop}).")
        _whole("rounds", self.rounds, 1)
        _one_of("allocation", self.allocation, ALLOCATIONS)
        if isinstance(self.round_to, str):
            if self.round_to != "auto":
                raise UsageError(f"round_to must be auto or a whole number (got {self.round_to!r}).")
        else:
            _whole("round_to", self.round_to, 1)

    @property
    def resource(self) -> str:
        """``macs``, ``params`` or ``size``; MACs where none is given."""
        return next((name for name in ("params", "size") if getattr(self, name) is not None), "macs")

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
        _one_of("repair", self.repair, REPAIRS)


@dataclass(frozen=True)
class RecoverySettings:
    """Fine-tuning with distillation. ``flip`` None: mirror colour images, leave grey ones (digits, letters) as they are."""

    epochs: int = 3
    batch_size: int = 64
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    temperature: float = 2.0
    distillation: float = 0.7
    flip: bool | None = None

    def __post_init__(self) -> None:
        _whole("epochs", self.epochs, 0)
        _whole("batch_size", self.batch_size, 2)
        _positive("learning_rate", self.learning_rate)
        _positive("temperature", self.temperature)
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"weight_decay must not be negative (got {self.weight_decay}).")
        if not 0 <= self.distillation <= 1:
            raise UsageError(f"distillation must be between 0 and 1 (got {self.distillation}).")


@dataclass(frozen=True)
class MeasurementSettings:
    """How the shipped files are measured."""

    provider: str = "auto"
    latency_batch: int = 1
    batches: tuple[int, ...] = (1, 32)

    def __post_init__(self) -> None:
        _one_of("provider", self.provider, PROVIDERS)
        _whole("latency_batch", self.latency_batch, 1)
        for size in self.batches:
            _whole("each of batches", size, 1)

    @property
    def measured_batches(self) -> tuple[int, ...]:
        """Every batch size to time, the gate's own included, in ascending order."""
        return tuple(sorted({*self.batches, self.latency_batch}))


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
        _positive("require_speedup", self.require_speedup)
        _positive("require_size_below", self.require_size_below)
        if self.require_provider is not None:
            _one_of("require_provider", self.require_provider, PROVIDERS[1:])


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    ranking: RankingSettings = field(default_factory=RankingSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    repair: RepairSettings = field(default_factory=RepairSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    measurement: MeasurementSettings = field(default_factory=MeasurementSettings)
    gates: GateSettings = field(default_factory=GateSettings)
    device: str = "auto"
    seed: int = 0
    agic: AgicSettings = field(default_factory=AgicSettings)

    def __post_init__(self) -> None:
        _one_of("device", self.device, DEVICES)
        _whole("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise UsageError(f"seed must be below 2**63 (got {self.seed}).")
        wanted, asked = self.gates.require_provider, self.measurement.provider
        if wanted is not None and asked not in ("auto", wanted):
            raise UsageError(f"provider {asked} contradicts require_provider {wanted}; drop one.")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; settings that are None are left out, as TOML has no null."""
        result: dict[str, Any] = {}
        for section in fields(self):
            value = getattr(self, section.name)
            if section.name in _SECTIONS:
                pairs = ((entry.name, getattr(value, entry.name)) for entry in fields(value))
                result[section.name] = {
                    key: list(item) if isinstance(item, tuple) else item for key, item in pairs if item is not None
                }
            else:
                result[section.name] = value
        return result

    def to_toml(self) -> str:
        plain = self.to_dict()
        top = {key: value for key, value in plain.items() if not isinstance(value, dict)}
        return tomli_w.dumps({**top, **{key: value for key, value in plain.items() if isinstance(value, dict)}})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a recipe from nested plain values.

        Raises:
            UsageError: a key that does not exist (the nearest one is named) or a value out of range.
        """
        return cls()._with(values)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a recipe file.

        Raises:
            InputError: no such file, not TOML, a key that does not exist, a value out of range.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"The recipe {path} does not exist.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"The recipe {path} is not valid TOML: {error}.") from error
        except OSError as error:
            raise InputError(f"The recipe {path} cannot be read ({error.strerror}).") from error
        try:
            return cls.from_dict(values)
        except UsageError as error:
            raise InputError(f"The recipe {path}: {error}") from error

    def override(self, **options: Any) -> Self:
        """This recipe with single settings replaced, named as on the command line; None leaves a setting as it is.

        A budget option replaces whatever budget the recipe had.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if any(name in given for name in BUDGETS):
            given = {**dict.fromkeys(BUDGETS), **given}
        result = self
        by_section: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            by_section.setdefault(_SECTION_OF[name], {})[name] = value
        changes: dict[str, Any] = {}
        for section, values in by_section.items():
            if section:
                changes[section] = replace(getattr(result, section), **values)
            else:
                changes.update(values)
        return replace(result, **changes)

    def _with(self, values: dict[str, Any]) -> Self:
        changes: dict[str, Any] = {}
        for key, value in values.items():
            if key not in {entry.name for entry in fields(self)}:
                raise UsageError(_unknown_key(key, "", [entry.name for entry in fields(self)]))
            if key not in _SECTIONS:
                changes[key] = value
                continue
            if not isinstance(value, dict):
                raise UsageError(f"{key} must be a section, [{key}].")
            changes[key] = _section(_SECTIONS[key], key, value)
        return replace(self, **changes)


_SECTIONS: dict[str, type[Any]] = {
    "model": ModelSettings,
    "data": DataSettings,
    "ranking": RankingSettings,
    "agic": AgicSettings,
    "budget": BudgetSettings,
    "repair": RepairSettings,
    "recovery": RecoverySettings,
    "measurement": MeasurementSettings,
    "gates": GateSettings,
}
_SECTION_OF = {entry.name: name for name, section in _SECTIONS.items() for entry in fields(section)}
_SECTION_OF.update({"device": "", "seed": ""})


def _section(kind: type[Any], section: str, values: dict[str, Any]) -> Any:
    names = [entry.name for entry in fields(kind)]
    hints = get_type_hints(kind)
    converted = {}
    for key, value in values.items():
        if key not in names:
            raise UsageError(_unknown_key(key, f" in [{section}]", names))
        converted[key] = tuple(value) if isinstance(value, list) else value
        _check_type(f"{section}.{key}", converted[key], hints[key])
    return kind(**converted)


def _check_type(name: str, value: Any, hint: Any) -> None:
    allowed = getattr(hint, "__args__", (hint,)) if not hasattr(hint, "__origin__") else (hint,)
    plain = [getattr(kind, "__origin__", kind) for kind in allowed]
    if float in plain and isinstance(value, int) and not isinstance(value, bool):
        return
    if not any(isinstance(value, kind) for kind in plain) or (isinstance(value, bool) and bool not in plain):
        wanted = " or ".join(kind.__name__ for kind in plain if kind is not type(None))
        raise UsageError(f"{name} must be of type {wanted} (got {value!r}).")
    if isinstance(value, tuple) and not all(isinstance(item, int | float) for item in value):
        raise UsageError(f"{name} must be a list of numbers (got {list(value)!r}).")


def _unknown_key(key: str, place: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(names)}."
    return f"unknown key {key!r}{place}.{hint}"


def _csv(values: tuple[Any, ...]) -> str:
    return ",".join(str(value) for value in values)
