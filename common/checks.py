"""Checks of single settings. Each raises a :class:`~secateur.common.errors.UsageError` that names the setting."""

import math
from typing import Any

from .errors import UsageError


def check_fraction(name: str, value: float | None) -> None:
    """Check that a value is None or a number strictly between 0 and 1."""
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and 0 < value < 1):
        raise UsageError(f"{name} must be between 0 and 1, the fraction that is left (got {value}).")


def check_positive(name: str, value: float | None) -> None:
    """Check that a value is None or a finite number above 0."""
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise UsageError(f"{name} must be above 0 (got {value}).")


def check_whole(name: str, value: int, least: int) -> None:
    """Check that a value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least} (got {value}).")


def check_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a value is one of ``choices``."""
    if value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)} (got {value!r}).")


def in_csv(values: tuple[Any, ...]) -> str:
    """Values as they are typed in an option: ``3,32,32``."""
    return ",".join(str(value) for value in values)
