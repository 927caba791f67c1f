"""Generated blocks of Markdown pages: the text between two markers is generated from the results of a benchmark.

A page contains prose and blocks:

    <!-- figures: pruning.without_training -->
    | … |
    <!-- end -->

The name gives the module of this package and the function that generate the block. The function takes the content of the
module's results file (``RESULTS``, or another for the functions in ``RESULTS_OF``) and returns lines. ``python -m
benchmarks.pages`` fills the blocks, ``--check`` compares them.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(?P<open><!-- figures: (?P<name>[\w.]+) -->\n)(?P<body>.*?)(?P<close>\n?<!-- end -->)", re.DOTALL)
Lines = Sequence[str]
Maker = Callable[[Any], Lines]


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that may hold blocks."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def maker_of(name: str) -> tuple[Maker, str]:
    """The function that generates a block, and the results file that it reads.

    Raises:
        LookupError: there is no such function.
    """
    module_name, _, function = name.partition(".")
    try:
        module = import_module(f"benchmarks.pages.{module_name}")
        return getattr(module, function), getattr(module, "RESULTS_OF", {}).get(function, module.RESULTS)
    except (ImportError, AttributeError) as error:
        raise LookupError(
            f"benchmarks/pages/{module_name}.py has no {function}() that makes the block {name}"
        ) from error


def filled(text: str, results: Path = RESULTS) -> str:
    """A page's text with its blocks generated from the results in a folder."""

    def make(found: re.Match[str]) -> str:
        maker, file = maker_of(found["name"])
        lines = maker(json.loads((results / file).read_text(encoding="utf-8")))
        body = "\n".join(["", *lines, ""]) if lines else ""
        return f"{found['open']}{body}\n<!-- end -->"

    return BLOCK.sub(make, text)


def drift(text: str, results: Path = RESULTS) -> list[str]:
    """The names of the blocks that differ from their results."""
    new = filled(text, results)
    pairs = zip(BLOCK.finditer(text), BLOCK.finditer(new), strict=True)
    return [old["name"] for old, made in pairs if old["body"].strip() != made["body"].strip()]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table whose first ``left`` columns are text and whose others are figures."""
    marks = ["---" if index < left else "---:" for index in range(len(header))]
    return [_row(header), "|" + "|".join(marks) + "|", *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def where(results: Mapping[str, Any]) -> str:
    """The machine that a benchmark ran on, and its seed."""
    machine = results["environment"]
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{machine['cores']} cores of {_article(machine['processor'])}{gpu}, seed {results.get('seed', 0)}"


def _article(processor: str) -> str:
    plain = processor.replace("(R)", "").replace(" Processor", "")
    return f"{'an' if plain[0] in 'AEIOU' else 'a'} {plain}"


def interval(value: float, low: float, high: float, digits: int = 2, unit: str = "") -> str:
    """A figure with its 95% confidence interval."""
    return f"{value:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every existing page of a checkout with its text."""
    for path in pages(folder):
        if path.is_file():
            yield path, path.read_text(encoding="utf-8")
