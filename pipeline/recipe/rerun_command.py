"""The command that repeats a run: a shell-quoted ``secateur prune-and-export`` with the non-default settings of its recipe."""

import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ...common.errors import UsageError
from .recipe import Recipe

WITHOUT_OPTION = frozenset(
    {
        "data.validation_share",
        "recovery.batch_size",
        "recovery.weight_decay",
        "recovery.temperature",
        "recovery.distillation",
    }
)
"""Settings that only a recipe file can change, besides the sections of methods."""
METHODS = ("agic", "picnn")
"""Sections whose settings have no options."""
FLAGS = {"page": "evidence", "precisions": "precision"}
"""Settings whose option has another name."""


def command_of(recipe: Mapping[str, Any], out: str = "secateur-run") -> str:
    """The command for a report's recipe, with options if they cover all settings, otherwise with the run folder's recipe
    file.
    """
    try:
        options = options_of(Recipe.from_dict(dict(recipe)))
    except UsageError:  # written by another version of secateur
        options = None
    if options is None:
        options = ["--recipe", "recipe.toml"]
    return shlex.join(["secateur", "prune-and-export", *options, "--out", out])


def options_of(recipe: Recipe) -> list[str] | None:
    """The options of ``prune-and-export`` that give this recipe; None if a setting without an option differs from its
    default.
    """
    found: list[str] = []
    usual = Recipe()
    for entry in fields(recipe):
        ours, default = getattr(recipe, entry.name), getattr(usual, entry.name)
        if ours == default:
            continue
        if entry.name in METHODS:
            return None
        pairs = (
            [(f"{entry.name}.{one.name}", getattr(ours, one.name), getattr(default, one.name)) for one in fields(ours)]
            if is_dataclass(ours)
            else [(entry.name, ours, default)]
        )
        for name, value, otherwise in pairs:
            if value == otherwise:
                continue
            words = None if name in WITHOUT_OPTION else _option(name.rpartition(".")[2], value)
            if words is None:
                return None
            found += words
    return found


def _option(name: str, value: Any) -> list[str] | None:
    """One option with its value; None if the command line cannot express it."""
    flag = f"--{FLAGS.get(name, name).replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if value is None:
        return None
    if isinstance(value, tuple):
        parts = [item if isinstance(item, str) else repr(item) for item in value]
        if any("," in part or part != part.strip() or not part for part in parts):
            return None
        value = ",".join(parts)
    text = value if isinstance(value, str) else repr(value)
    if not text.isprintable():  # a line break would end the code block that shows the command
        return None
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]
