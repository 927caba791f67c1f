"""The project's own habits: one version, one set of checks, tests found for what changed."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

import secateur
from checkout import copy_checkout

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "Makefile").is_file():
    pytest.skip("needs the checkout, not an installed package", allow_module_level=True)
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def script(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_version_is_said_alike_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert SETUP["project"]["version"] == secateur.__version__ == cited["version"]
    assert cited["license"] == SETUP["project"]["license"]
    assert [one["name"] for one in cited["authors"]] == [one["name"] for one in SETUP["project"]["authors"]]


def test_pre_commit_runs_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    entries = " ".join(hook["entry"] for hook in hooks)
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nlint: setup\n", 1)[1].split("\n\n", 1)[0]
    for tool in re.findall(r"\$\(BIN\)/(.*)", recipe):
        what = tool.removesuffix(" .")
        assert what in entries, what


def test_forms_and_workflows_are_yaml():
    for path in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8")), path


def test_a_changed_module_brings_its_mirror_and_whoever_imports_it(tmp_path):
    for name, text in {
        "tests/network/test_load.py": "import os",
        "tests/cli/test_init.py": "from secateur.network import load\nfrom secateur.network.load import load_model",
        "tests/prune/test_plan.py": "import secateur.prune.plan",
        "tests/prune/conftest.py": "",
        "tests/benchmarks/test_pages.py": "from benchmarks.pages.check import drift",
        "tests/test_docs.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    tests = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("test_*.py")]
    tests_of = script("changed_tests").tests_of

    def of(*changed):
        return tests_of(changed, tests, tmp_path)

    assert of("network/load.py") == ["tests/cli/test_init.py", "tests/network/test_load.py"]
    assert of("prune/plan.py") == ["tests/prune/test_plan.py"]
    assert of("prune/cost.py") == []
    assert of("tests/prune/conftest.py") == ["tests/prune/test_plan.py"]
    assert of("tests/network/test_load.py") == ["tests/network/test_load.py"]
    assert of("benchmarks/pages/check.py") == ["tests/benchmarks/test_pages.py"]
    assert of("docs/index.md", "README.md") == ["tests/test_docs.py"]
    assert of("LICENSE") == []
    (tmp_path / "tests" / "scripts").mkdir()
    (tmp_path / "tests" / "scripts" / "test_architecture.py").touch()
    tests.append("tests/scripts/test_architecture.py")
    assert of("prune/cost.py") == ["tests/scripts/test_architecture.py"]
    assert of("docs/architecture.md") == ["tests/scripts/test_architecture.py", "tests/test_docs.py"]
    assert of("docs/index.md") == ["tests/test_docs.py"]


def test_a_package_brings_the_tests_of_its_folder_and_a_helper_those_that_use_it(tmp_path):
    for name, text in {
        "tests/conftest.py": "import networks\n@pytest.fixture\ndef tiny(): ...\n@pytest.fixture()\ndef large(): ...",
        "tests/networks.py": "",
        "tests/pages.py": "",
        "tests/test_docs.py": "from pages import run_page\nimport secateur",
        "tests/prune/test_plan.py": "import networks\nimport secateur.prune.plan",
        "tests/prune/widths/test_cost.py": "def test_cost(tiny): ...",
        "tests/prune/widths/conftest.py": "from pages import run_page",
        "tests/cli/test_plan.py": "from secateur.prune import plan",
        "tests/cli/test_init.py": "def test_init(tmp_path): ...",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    tests = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("test_*.py")]

    def of(*changed):
        return script("changed_tests").tests_of(changed, tests, tmp_path)

    below = ["tests/prune/test_plan.py", "tests/prune/widths/test_cost.py"]
    assert of("prune/__init__.py") == ["tests/cli/test_plan.py", *below]
    assert of("prune/widths/__init__.py") == below[1:]
    assert of("__init__.py") == ["tests/test_docs.py"]
    assert of("tests/pages.py") == [below[1], "tests/test_docs.py"]
    assert of("tests/conftest.py") == below[1:]
    assert of("tests/networks.py") == below
    assert of("tests/gone.py") == []


@pytest.fixture
def make_check(tmp_path):
    """Runs `make check` of a folder where ruff and mypy pass, changed_tests.py and pytest do as told, and nothing is set up."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    for name in ("requirements.lock", "pyproject.toml", "ready"):
        (tmp_path / name).touch()

    def run(python, tests):
        for name, does in {"ruff": "true", "mypy": "true", "python": python, "pytest": tests}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
            (tmp_path / name).chmod(0o755)
        command = ["make", "check", f"BIN={tmp_path}", f"READY={tmp_path / 'ready'}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_make_check_fails_with_its_parts_and_passes_where_only_slow_tests_are_left(make_check):
    assert make_check("echo tests/test_a.py", "true").returncode == 0
    assert make_check("echo tests/test_a.py", "exit 5").returncode == 0
    assert make_check("echo tests/test_a.py", "exit 1").returncode != 0
    assert make_check("exit 1", "true").returncode != 0
    done = make_check("true", "exit 1")
    assert (done.returncode, "no test belongs to what changed" in done.stdout) == (0, True)


@pytest.mark.parametrize(("known", "says"), [(True, "make check BASE=origin/main"), (False, "not a git repository")])
def test_a_base_that_is_not_there_is_said(tmp_path, known, says):
    (tmp_path / "scripts").mkdir()
    shutil.copyfile(ROOT / "scripts" / "changed_tests.py", tmp_path / "scripts" / "changed_tests.py")
    if known:
        subprocess.run(["git", "init", "--quiet", "--initial-branch", "work", str(tmp_path)], check=True)
    command = [sys.executable, "scripts/changed_tests.py", "main"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert says in done.stderr


def test_the_source_distribution_holds_the_checkout(tmp_path):
    names = copy_checkout(tmp_path / "x-y")
    build = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "x-y", capture_output=True, text=True, check=True)
    (archive,) = (tmp_path / "x-y" / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        found = {name.partition("/")[2] for name in opened.getnames()}
    assert not sorted(set(names) - found)
    assert not sorted(name for name in found if name.startswith(("build/", "dist/")) or "__pycache__" in name)


def test_issue_forms_ask_for_what_a_defect_needs():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    assert {"command", "expected", "doctor", "recipe", "network"} <= {one["id"] for one in form["body"]}
