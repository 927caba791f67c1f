"""The recipe of a run, composed of sections: frozen dataclasses that validate on construction."""

import difflib
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, get_type_hints

import tomli_w

from ...common.checks import check_one_of, check_whole
from ...common.errors import InputError, UsageError
from ...explain.settings import AgicSettings, EvidencePageSettings, PicnnSettings, RankingSettings
from ...export.settings import GateSettings, MeasurementSettings, ReleaseSettings
from ...network.settings import DataSettings, ModelSettings
from ...prune.settings import BUDGETS, BudgetSettings, RecoverySettings, RepairSettings

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Recipe:
    """All settings that determine a run's result.

    Examples:
        >>> import secateur
        >>> recipe = secateur.Recipe().override(model="network.py:build", data="images", macs=0.5, epochs=0)
        >>> recipe.model.model, recipe.budget.macs, recipe.recovery.epochs
        ('network.py:build', 0.5, 0)
        >>> secateur.Recipe().override(macs=1.4)
        Traceback (most recent call last):
        secateur.common.errors.UsageError: macs must be between 0 and 1, the fraction that is left (got 1.4).
    """

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
    picnn: PicnnSettings = field(default_factory=PicnnSettings)
    evidence: EvidencePageSettings = field(default_factory=EvidencePageSettings)
    release: ReleaseSettings = field(default_factory=ReleaseSettings)

    def __post_init__(self) -> None:
        check_one_of("device", self.device, DEVICES)
        check_whole("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise UsageError(f"seed must be below 2**63 (got {self.seed}).")
        wanted, asked = self.gates.require_provider, self.measurement.provider
        if wanted is not None and asked not in ("auto", wanted):
            raise UsageError(f"provider {asked} contradicts require_provider {wanted}. Remove one of them.")

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
            UsageError: a key does not exist (the message names the nearest one) or a value is out of range.
        """
        return cls()._with(values)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a recipe file.

        Raises:
            InputError: the file does not exist or is not TOML, a key does not exist, or a value is out of range.
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

        A budget option replaces the recipe's budget.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if any(name in given for name in BUDGETS):
            given = {**dict.fromkeys(BUDGETS), **given}
        result = self
        by_section: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            by_section.setdefault(SETTINGS[name], {})[name] = value
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
    "picnn": PicnnSettings,
    "budget": BudgetSettings,
    "repair": RepairSettings,
    "recovery": RecoverySettings,
    "measurement": MeasurementSettings,
    "gates": GateSettings,
    "evidence": EvidencePageSettings,
    "release": ReleaseSettings,
}
_OPTIONLESS = ("agic", "picnn")  # settings of methods have no options, so their names may recur
SETTINGS: dict[str, str] = {
    entry.name: name for name, section in _SECTIONS.items() if name not in _OPTIONLESS for entry in fields(section)
}
SETTINGS.update({"device": "", "seed": ""})


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
    if isinstance(value, tuple):
        of_names = any(str in getattr(kind, "__args__", ()) for kind in allowed)
        if not all(isinstance(item, str if of_names else int | float) for item in value):
            raise UsageError(f"{name} must be a list of {'names' if of_names else 'numbers'} (got {list(value)!r}).")


def _unknown_key(key: str, place: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(names)}."
    return f"unknown key {key!r}{place}.{hint}"
