"""Prints the test files of what changed against a branch: `python scripts/changed_tests.py [main]`.

A changed module counts with its mirror (`network/load.py` -> `tests/network/test_load.py`) and with every test that imports it,
a package's `__init__.py` with all tests of the package's folder, a helper of the tests with the tests that use it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = Path("tests")
OUTSIDE = {"docs": "tests/test_docs.py", "scripts": "tests/test_docs.py", "README.md": "tests/test_docs.py"}
"""What is no module, and the test that reads it."""
ARCHITECTURE = "tests/scripts/test_architecture.py"
"""The test of a page that names files and functions of the package, and of the script that draws its picture."""


def git(*arguments: str) -> list[str]:
    """The lines that a git command prints.

    Raises:
        SystemExit: git is not there, or the command failed; with what it said.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit("git was not found: install it, or name the tests to run yourself: .venv/bin/pytest tests/...")
    if done.returncode:
        sys.exit(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.splitlines()


def changed_files(base: str) -> list[str]:
    """Files that differ from where this branch left ``base``, and those that git does not know yet."""
    git("rev-parse", "--git-dir")  # a folder without git says so itself
    find = ["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]
    if subprocess.run(find, cwd=ROOT, capture_output=True).returncode:
        sys.exit(f"{base!r} is no branch or commit here: name what to compare with, as in make check BASE=origin/main")
    compared = git("diff", "--name-only", "--merge-base", base)
    return sorted({*compared, *git("ls-files", "--others", "--exclude-standard")})


def imports_of(path: Path) -> set[str]:
    """The modules that a test imports, by their dotted names under ``secateur`` or ``benchmarks``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def fixtures_of(path: Path) -> set[str]:
    """The fixtures that a conftest defines."""
    return {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and any("fixture" in ast.unparse(one) for one in node.decorator_list)
    }


def parameters_of(path: Path) -> set[str]:
    """The names that the functions of a file ask for, fixtures among them."""
    return {
        argument.arg
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for argument in node.args.args
    }


def tests_of_helper(path: Path, known: dict[str, set[str]], root: Path) -> set[str]:
    """The tests that a helper of the tests belongs to: those below its folder, or, of one for all tests, those that use it."""
    if path.parent != TESTS:
        return {name for name in known if Path(name).is_relative_to(path.parent)}
    if path.suffix != ".py" or not (root / path).is_file():
        return set()
    if path.name == "conftest.py":
        fixtures = fixtures_of(root / path)
        return {name for name in known if parameters_of(root / name) & fixtures}
    found = {name for name, imported in known.items() if path.stem in imported}
    conftests = (one.relative_to(root) for one in sorted((root / TESTS).rglob("conftest.py")))
    for conftest in (one for one in conftests if path.stem in imports_of(root / one)):
        found |= tests_of_helper(conftest, known, root)
    return found


def tests_of_module(path: Path, known: dict[str, set[str]]) -> set[str]:
    """The tests of a module: its mirror, or, of a package's ``__init__.py``, its folder; and the tests that import it."""
    package = path.name == "__init__.py"
    module = ".".join(path.parts[:-1] if package else path.with_suffix("").parts)
    dotted = {f"secateur.{module}", module} if module else {"secateur"}
    found = {name for name, imported in known.items() if imported & dotted}
    if package and module:
        return found | {name for name in known if Path(name).is_relative_to(TESTS / path.parent)}
    return found | {TESTS.joinpath(path.parent, f"test_{path.name}").as_posix()}


def tests_of(changed: Iterable[str], tests: Iterable[str], root: Path) -> list[str]:
    """The test files, among ``tests``, that belong to changed files; all paths are relative to ``root``."""
    known = {name: imports_of(root / name) for name in tests}
    wanted: set[str] = set()
    for name in changed:
        path = Path(name)
        if name in known:
            wanted.add(name)
        elif path.parts[0] == "tests":
            wanted |= tests_of_helper(path, known, root)
        elif path.parts[0] in OUTSIDE:
            wanted |= {OUTSIDE[path.parts[0]], *([ARCHITECTURE] if path.stem == "architecture" else [])}
        elif path.suffix == ".py":
            wanted |= {*tests_of_module(path, known), ARCHITECTURE}
    return sorted(wanted & set(known))


def main() -> None:
    base = sys.argv[1] if len(sys.argv) > 1 else "main"
    tests = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / TESTS).rglob("test_*.py"))]
    print(*tests_of(changed_files(base), tests, ROOT))


if __name__ == "__main__":
    main()
