"""The repository as the package: rooms import one way, the wheel is whole, nothing heavy loads early."""

import ast
import json
import os
import re
import statistics
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from checkout import copy_checkout

ROOT = Path(__file__).resolve().parent.parent


def floors():
    """The rooms, lowest first, as CONTRIBUTING prints them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("<!-- floors -->", 1)[1].split("<!-- end -->", 1)[0]
    return tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


FLOORS = floors()
FLOOR_OF = {room: floor for floor, room in enumerate(FLOORS)}
ROOT_MODULES = {"__init__.py", "__main__.py"}
MOST_MODULES, MOST_LINES, MOST_FUNCTION_LINES = 15, 350, 60
LONGER = {
    "cli/prune_and_export.py prune_and_export_command": "its signature lists every option",
    "cli/explain.py explain_command": "its signature lists every option",
    "cli/train_picnn.py train_picnn_command": "its signature lists every option",
}
"""Modules and functions that may be longer, with the reason."""
CHECKOUT = (ROOT / "Makefile").is_file() and (ROOT / "pyproject.toml").is_file()


def package_files():
    yield from ROOT.glob("*.py")
    for room in FLOORS:
        yield from (ROOT / room).rglob("*.py")


def imported_rooms(path):
    """(room of the file, room it imports) for every relative import, lazy ones included."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(parts[: len(parts) - node.level])
            target = base + (node.module.split(".") if node.module else [])
            rooms = [target[0]] if target else [alias.name for alias in node.names]
            for room in rooms:
                yield parts[0], room


def test_rooms_import_only_what_lies_below_them():
    for path in package_files():
        if path.parent == ROOT:
            continue
        for own, other in imported_rooms(path):
            assert other in FLOOR_OF, f"{path}: imports {other}, which has no floor"
            if own != other:
                assert FLOOR_OF[other] < FLOOR_OF[own], f"{path} imports {other}"


def imports_between_modules():
    """For every module the modules it imports: anywhere in it, for types only, or when they are needed.

    A package's ``__init__.py`` counts as a module of the package's name. The root's is left out: it imports on first use only.
    """
    paths = [path.relative_to(ROOT) for path in package_files() if path != ROOT / "__init__.py"]
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    edges = {}
    for name, path in names.items():
        parts, edges[name] = path.with_suffix("").parts, set()
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else [])]
                for alias in node.names:
                    targets = (".".join([*base, alias.name]), ".".join(base))
                    edges[name] |= set([target for target in targets if target in names][:1])
    return edges


def test_no_import_circle_not_even_a_lazy_one():
    edges, state = imports_between_modules(), {}

    def visit(name, trail):
        if state.get(name) == "done" or name not in edges:
            return
        assert state.get(name) != "open", " -> ".join([*trail[trail.index(name) :], name])
        state[name] = "open"
        for target in sorted(edges[name]):
            visit(target, [*trail, name])
        state[name] = "done"

    for name in edges:
        visit(name, [])


def test_the_root_holds_two_modules_and_every_package_is_a_room_of_the_table():
    assert {path.name for path in ROOT.glob("*.py")} == ROOT_MODULES
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(FLOORS)


def python_folders():
    for room in (*FLOORS, "benchmarks", "scripts", "tests"):
        if (ROOT / room).is_dir():
            yield from {path.parent for path in (ROOT / room).rglob("*.py")}


def test_no_folder_holds_too_many_modules():
    for folder in python_folders():
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, f"{folder}: {len(modules)} modules"


def test_no_module_and_no_function_is_too_long():
    longer = set()
    for path in (path for folder in python_folders() for path in folder.glob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        if len(text.splitlines()) > MOST_LINES:
            longer.add(name)
        longer |= {
            f"{name} {node.name}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MOST_FUNCTION_LINES
        }
    assert longer == set(LONGER), "split what is too long, or give it a reason in LONGER"


def test_every_package_says_what_it_is_for_and_which_file_to_open_first():
    for path in (path for path in package_files() if path.name == "__init__.py" and path.parent != ROOT):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert len(re.findall(r"[.:](?:\s|$)", text)) >= 3, f"{path}: what it is for, what comes in, what goes out"
        named = re.findall(r"``([\w/]+\.py)``", text)
        assert named, f"{path}: which file to open first"
        for name in named:
            assert (path.parent / name).is_file(), f"{path}: {name} is not there"


def test_package_imports_itself_only_relatively():
    for path in package_files():
        assert not re.search(r"^\s*(from|import) secateur\b", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_public_names_resolve():
    import secateur

    for name in secateur.__all__:
        assert getattr(secateur, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = secateur.no_such_name


def test_help_loads_nothing_heavy_and_is_quick():
    code = (
        "import sys, secateur.cli.commands as c\n"
        "try: c.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'torch_geometric', 'shap', 'numpy', 'onnx', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")

    def seconds(command):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start

    script = Path(sys.executable).with_name("secateur")
    bare = [sys.executable, "-c", "import typer.rich_utils, rich.markdown, rich.traceback"]  # what any such help loads
    assert statistics.median(seconds([script, "--help"]) / seconds(bare) for _ in range(5)) < 2


def test_graphs_and_samplers_load_when_they_are_needed():
    """One process for all: importing torch takes it seconds."""
    modules = (
        "explain.ranking",
        "explain.agic.build",
        "explain.faithfulness.graph_classifier",
        "pipeline.single_commands",
    )
    code = (
        f"import sys, {', '.join(f'secateur.{module}' for module in modules)}\n"
        "secateur.explain.registry.load_rankers()\n"
        "print(sorted({'torch_geometric', 'shap', 'captum'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip() == "[]"


def test_the_first_graph_comes_without_warnings():
    code = "from secateur.explain.agic.layout import empty_graph; print(type(empty_graph()).__name__)"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "HeteroData\n"
    assert "torch.jit.script" not in done.stderr


@pytest.mark.skipif(not CHECKOUT, reason="needs the checkout, not an installed package")
def test_lock_names_no_index_and_hashes_everything():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index-url" not in text
    names = re.findall(r"^[a-z0-9][a-z0-9._-]*==[^\s;\\]+", text, re.MULTILINE)
    assert len(names) > 50
    for block in re.split(r"\n(?=[a-z0-9])", text[text.index(names[0]) :]):
        assert "--hash=sha256:" in block, block[:80]


@pytest.mark.long
@pytest.mark.skipif(not CHECKOUT, reason="needs the checkout, not an installed package")
def test_wheel_is_whole_and_runs_in_an_empty_environment(tmp_path):
    source = tmp_path / "x-y"
    copy_checkout(source)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    )
    wheel = tmp_path / done.stdout.splitlines()[-1]
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    expected = {f"secateur/{path.relative_to(ROOT).as_posix()}" for path in package_files()}
    for package, names in data.items():
        room = ROOT.joinpath(*package.split(".")[1:])
        expected |= {
            f"secateur/{path.relative_to(ROOT).as_posix()}"
            for name in names
            for path in room.glob(name)
            if path.is_file()
        }
    assert found == expected

    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    install = ["install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), *install], check=True)
    # The dependencies are this environment's; its .pth files (the editable install) are not read through a .pth.
    import torch

    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parent.parent))
    outside = tmp_path / "outside"
    outside.mkdir()
    run = subprocess.run(
        [environment / "bin" / "secateur", "prune-and-export", "--epochs", "0", "--out", "run"],
        cwd=outside,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert run.returncode == 0, run.stderr
    assert (outside / "run" / "model.onnx").is_file()
    report = json.loads((outside / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["exit_code"] == 0
    assert report["pruned"]["macs"] <= report["baseline"]["macs"] / 2
    where = subprocess.run(
        [environment / "bin" / "python", "-c", "import secateur; print(secateur.__file__)"],
        cwd=outside,
        capture_output=True,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert str(site) in where.stdout
