"""The application: its commands in the order of use, and the conversion of errors into messages and exit codes."""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from ..common.errors import ExitCode, SecateurError

if TYPE_CHECKING:
    from rich.console import Console

    from .terminal import TerminalObserver

F = TypeVar("F", bound=Callable[..., Any])

PANELS = {
    "init": "Everyday", "prune-and-export": "Everyday",
    "explain": "One stage at a time", "plan": "One stage at a time", "prune": "One stage at a time",
    "recover": "One stage at a time", "export": "One stage at a time",
    "bench": "Measure and report", "report": "Measure and report",
    "train-picnn": "Methods", "rankers": "Methods",
    "doctor": "This machine",
}  # fmt: skip
"""All commands with their headings in the help, in the order of use."""


class InOrderOfUse(TyperGroup):
    """Lists commands in the order of :data:`PANELS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in PANELS if name in self.commands]


app = typer.Typer(
    cls=InOrderOfUse,
    help="Cut the kernels that a convolutional network does not need, and show why.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ..common.environment import installed_packages

        typer.echo(f"secateur {installed_packages().get('secateur', '(not installed)')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Cut the kernels that a convolutional network does not need, and show why."""


def command(name: str) -> Callable[[F], F]:
    """Register a command whose errors become one readable message and an exit code."""

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                code = function(*args, **kwargs)
            except SecateurError as error:
                _fail(str(error), error.exit_code, error)
            except KeyboardInterrupt:
                typer.echo(
                    "secateur: interrupted. Finished stages are kept; run the same command again (with --resume, if it "
                    "has that option) to continue.",
                    err=True,
                )
                raise
            except MemoryError as error:
                _fail("this machine has too little memory. Try a smaller --calibration.", ExitCode.MACHINE, error)
            except Exception as error:
                what = f"a defect in secateur: {type(error).__name__}: {error}."
                _fail(
                    f"{what} Please report it with the output of the same command under SECATEUR_DEBUG=1.",
                    ExitCode.DEFECT,
                    error,
                )
            raise typer.Exit(int(code or 0))

        app.command(name, rich_help_panel=PANELS[name])(guarded)
        return function

    return wrap


def _fail(message: str, code: ExitCode, error: BaseException) -> None:
    """Print one message, with a traceback if requested, and end with an exit code."""
    typer.echo(f"secateur: {message}", err=True)
    if os.environ.get("SECATEUR_DEBUG"):
        traceback.print_exception(error)
    raise typer.Exit(int(code)) from error


def console_of(*, stderr: bool = False) -> "Console":
    """A console on standard output, or on standard error if standard output is for a program."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 110)


def observed(quiet: bool, json: bool = False) -> tuple["Console", "TerminalObserver"]:
    """A console with its observer. With ``json``, both use standard error, since standard output is for a program."""
    from .terminal import TerminalObserver

    console = console_of(stderr=json)
    return console, TerminalObserver(console, quiet)


def print_json(value: Any) -> None:
    """Print a result as JSON for a program."""
    import json

    typer.echo(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
