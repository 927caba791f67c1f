"""Runs the marked code blocks of a Markdown page, in the order in which a reader would.

`<!-- run -->` before a block runs it (`<!-- run: exit 1 -->`: a command that must end so), `<!-- file: NAME -->` writes it.
Python blocks of a page share one namespace; shell blocks may call `secateur` and `python FILE`, in this process, as importing
torch for each would take longer than what they do. A `text` block behind a block that ran must have come out, numbers and
spaces aside.
"""

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>run|file)(?:: (?P<value>[^>]*?))? -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its ``mark`` (run, file or none), the mark's value, language and code."""

    mark: str
    value: str
    language: str
    code: str


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        yield Block(found["mark"] or "", found["value"] or "", found["language"], found["code"])


def run_page(path: Path) -> int:
    """Run a page's marked blocks in the present folder; how many there were."""
    names: dict[str, Any] = {"__name__": "page"}
    printed, count = "", 0
    for block in blocks(path.read_text(encoding="utf-8")):
        count += bool(block.mark)
        if block.mark == "file":
            Path(block.value).write_text(block.code, encoding="utf-8")
        elif block.mark == "run" and block.language == "python":
            printed = _printed(lambda code=block.code: exec(compile(code, str(path), "exec"), names))
        elif block.mark == "run":
            wanted = int(block.value.removeprefix("exit ") or 0)
            printed = "".join(_command(line, wanted) for line in block.code.replace("\\\n", " ").splitlines() if line)
        elif block.language == "text" and printed:
            came = {_masked(line) for line in printed.splitlines()}
            for line in block.code.splitlines():
                assert line == "…" or _masked(line) in came, (
                    f"{path.name} shows {line!r}, but what came was:\n{printed}"
                )
            printed = ""
    return count


def _command(line: str, wanted: int) -> str:
    program, *arguments = shlex.split(line, comments=True)
    if program == "secateur":
        from secateur.cli.commands import app

        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == wanted, f"{line}: exit code {done.exit_code}\n{done.output}"
        return done.output
    assert program == "python", f"only secateur and python may be run: {line}"
    kept, modules = (sys.argv, sys.path), set(sys.modules)
    sys.argv, sys.path = arguments, [str(Path.cwd()), *sys.path]
    try:
        return _printed(lambda: runpy.run_path(arguments[0], run_name="__main__"))
    finally:
        sys.argv, sys.path = kept
        for name in set(sys.modules) - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == Path.cwd():
                del sys.modules[name]  # another page's file may bear the same name


def _printed(work: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        work()
    return out.getvalue()


def _masked(line: str) -> str:
    return " ".join(NUMBER.sub("#", line).split())
