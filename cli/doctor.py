"""``secateur doctor`` and ``secateur rankers``: check this machine, and list the rankings."""

from dataclasses import asdict
from typing import Annotated

import typer

from .app import command, console_of, print_json
from .options import Json


@command("doctor")
def doctor_command(
    require: Annotated[
        str | None,
        typer.Option(help="Exit with code 4 unless this provider runs: cpu, cuda, tensorrt or openvino."),
    ] = None,
    json: Json = False,
) -> None:
    """Check what works on this machine, and show the commands that fix what does not."""
    from .terminal import show_table
    from .tools.doctor import examine
    from .tools.doctor import require as check

    findings = examine()
    if json:
        print_json([asdict(one) for one in findings])
    else:
        show_table(console_of(), ("what", "found", "status"), [(one.name, one.found, one.advice) for one in findings])
    if require is not None:
        check(findings, require)


@command("rankers")
def rankers_command(json: Json = False) -> None:
    """List the available rankings."""
    from ..explain.registry import rankers
    from .terminal import show_table

    found = rankers()
    if json:
        keys = ("name", "summary", "needs", "unit", "source")
        print_json([{key: getattr(one, key) for key in keys} for one in found])
        return
    rows = [(one.name, one.summary, one.needs, one.unit) for one in found]
    show_table(console_of(), ("name", "higher means", "needs", "unit"), rows)
