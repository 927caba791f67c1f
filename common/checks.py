"""Checks of single settings; each raises a usage error that names the setting."""

import math
from typing import Any

from .errors import UsageError


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


def in_csv(values: tuple[Any, ...]) -> str:
    return ",".join(str(value) for value in values)
