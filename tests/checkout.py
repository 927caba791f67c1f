"""The checkout as git knows it, for the tests that build from it."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tracked_files():
    """The files that git tracks, relative to the checkout; skips where there is none, as in a source distribution."""
    command = ["git", "ls-files", "--full-name"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True) if shutil.which("git") else None
    names = listed.stdout.splitlines() if listed and not listed.returncode else []
    if "pyproject.toml" not in names:
        pytest.skip("needs a git checkout to list its files")
    return [name for name in names if (ROOT / name).is_file()]


def copy_checkout(target):
    """Copy the tracked files into a new folder; returns their names."""
    names = tracked_files()
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    return names
