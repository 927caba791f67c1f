"""Errors that a user can fix, each with the exit code of the command line."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a run of ``secateur`` ended, for scripts and CI."""

    OK = 0
    GATE_FAILED = 1
    USAGE = 2
    BAD_INPUT = 3
    MACHINE = 4
    DEFECT = 5


class SecateurError(Exception):
    """An error that the user can fix. The message says what was wrong, what was expected and what to do next.

    Examples:
        >>> import secateur
        >>> try:
        ...     secateur.load_model("digits", weights="missing.safetensors")
        ... except secateur.SecateurError as error:
        ...     print(f"{error} (exit code {int(error.exit_code)})")
        The weights missing.safetensors do not exist. (exit code 3)
    """

    exit_code = ExitCode.DEFECT


class UsageError(SecateurError):
    """The options contradict each other or lie outside their range."""

    exit_code = ExitCode.USAGE


class InputError(SecateurError):
    """The model, the weights, the data or the recipe file cannot be used."""

    exit_code = ExitCode.BAD_INPUT


class BudgetError(SecateurError):
    """The budget cannot be reached, whatever is removed from this network."""

    exit_code = ExitCode.GATE_FAILED


class MachineError(SecateurError):
    """This machine lacks something that was required: a GPU, an execution provider."""

    exit_code = ExitCode.MACHINE


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; its type where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def describe(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"
