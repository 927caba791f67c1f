"""The content of ``report.json``: its schema, and reading it."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.files import read_json

SCHEMA_VERSION = 1

Report = Mapping[str, Any]
"""The content of ``report.json``; its schema is ``templates/report.schema.json``."""


def schema() -> dict[str, Any]:
    """The JSON schema of a report."""
    text = resources.files(__package__).joinpath("templates", "report.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def read_report(path: Path) -> dict[str, Any]:
    """Read ``report.json`` (or the one in a folder).

    Raises:
        InputError: the file is missing, is not JSON, or has another schema version.
    """
    path = path / "report.json" if path.is_dir() else path
    report = read_json(path)
    if not isinstance(report, dict) or report.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path} is not a report of schema version {SCHEMA_VERSION}. Run `secateur prune-and-export` again."
        )
    return report
