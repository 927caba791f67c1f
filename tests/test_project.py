"""The project's own habits: one version, one set of checks, tests found for what changed."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import secateur

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


def test_issue_forms_ask_for_what_a_defect_needs():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    assert {"command", "expected", "doctor", "recipe", "network"} <= {one["id"] for one in form["body"]}
