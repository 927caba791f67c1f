"""Prints the test files of what changed against a branch: `python scripts/changed_tests.py [main]`.

A changed module counts with its mirror (`network/load.py` -> `tests/network/test_load.py`) and with every test that imports it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"docs": "tests/test_docs.py", "scripts": "tests/test_docs.py", "README.md": "tests/test_docs.py"}
"""What is no module, and the test that reads it."""


def changed_files(base: str) -> list[str]:
    """Files that differ from where this branch left ``base``, and those that git does not know yet."""
    commands = (
        ["git", "diff", "--name-only", "--merge-base", base],
        ["git", "ls-files", "--others", "--exclude-standard"],
    )
    found = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        for command in commands
    ]
    return sorted({name for names in found for name in names})


def imports_of(path: Path) -> set[str]:
    """The modules that a test imports, by their dotted names under ``secateur`` or ``benchmarks``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def tests_of(changed: Iterable[str], tests: Iterable[str], root: Path) -> list[str]:
    """The test files, among ``tests``, that belong to changed files; all paths are relative to ``root``."""
    known = {name: imports_of(root / name) for name in tests}
    wanted: set[str] = set()
    for name in changed:
        path = Path(name)
        if name in known:
            wanted.add(name)
        elif path.parts[0] == "tests":  # a conftest or a helper: the tests beside and below it
            wanted |= {
                test for test in known if Path(test).is_relative_to(path.parent) and path.parent != Path("tests")
            }
        elif path.suffix == ".py" and path.parts[0] not in OUTSIDE:
            wanted.add(Path("tests", *path.parts[:-1], f"test_{path.name}").as_posix())
            module = ".".join(path.with_suffix("").parts)
            dotted = {module, f"secateur.{module}"}
            wanted |= {test for test, imported in known.items() if imported & dotted}
        elif path.parts[0] in OUTSIDE:
            wanted.add(OUTSIDE[path.parts[0]])
    return sorted(wanted & set(known))


def main() -> None:
    base = sys.argv[1] if len(sys.argv) > 1 else "main"
    tests = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    print(*tests_of(changed_files(base), tests, ROOT))


if __name__ == "__main__":
    main()
