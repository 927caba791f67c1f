"""Settings that say what they are for: the help of an option, the comment in a recipe, the row in the reference."""

from dataclasses import field, fields
from typing import Any


def setting(default: Any, help: str, *, flag: str | None = None) -> Any:
    """A dataclass field with a default, a help text, and the name of its option where that is not the field's own."""
    return field(default=default, metadata={"help": help, "flag": flag})


def help_of(section: type[Any], name: str) -> str:
    """The help text of a setting."""
    return str(next(entry for entry in fields(section) if entry.name == name).metadata["help"])


def flag_of(section: type[Any], name: str) -> str:
    """The option of a setting, with its dashes."""
    entry = next(entry for entry in fields(section) if entry.name == name)
    return f"--{entry.metadata.get('flag') or name.replace('_', '-')}"
