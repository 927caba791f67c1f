"""The ``secateur`` command with all its subcommands."""

from . import bench, doctor, explain, export, init, plan, prune, prune_and_export, report, train_picnn  # noqa: F401
from .app import app


def main() -> None:
    """The console script."""
    app()
