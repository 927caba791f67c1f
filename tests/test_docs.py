"""What the documentation says runs: the examples of the public names, the README's and the pages' blocks, the site itself."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

import secateur
from pages import blocks, run_page
from secateur.cli.commands import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NAMES = [name for name in secateur.__all__ if not name.startswith("__")]
WITHOUT_EXAMPLE = {"InputError", "MachineError", "UsageError"}  # SecateurError's shows them

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="needs the checkout, not an installed package")


def run_doctest(subject, name):
    """The examples of one docstring, from an empty namespace, in the present folder; how many there were."""
    runner = doctest.DocTestRunner(verbose=False)
    said = []
    count = 0
    for test in doctest.DocTestFinder(recurse=False).find(subject, name, globs={}):
        runner.run(test, out=said.append)
        count += len(test.examples)
    assert not runner.failures, "".join(said)
    return count


@pytest.mark.parametrize("name", [*NAMES, "the package"])
def test_examples_of_the_public_names_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subject = secateur if name == "the package" else getattr(secateur, name)
    assert bool(run_doctest(subject, name)) == (name not in WITHOUT_EXAMPLE)


@pytest.mark.parametrize("page", ["README.md", "docs/tutorials/digits.md", "docs/tutorials/your-own-network.md"])
def test_marked_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_page(ROOT / page) > 0


def test_the_readmes_commands_for_ones_own_network_run(tmp_path, monkeypatch):
    """On the network and the images that the tutorial makes."""
    monkeypatch.chdir(tmp_path)
    for block in blocks((DOCS / "tutorials" / "your-own-network.md").read_text(encoding="utf-8")):
        if block.mark == "file":
            Path(block.value).write_text(block.code, encoding="utf-8")
    subprocess.run([sys.executable, "make_example.py"], check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own network", 1)[1].split("\n## ", 1)[0]
    (commands,) = (block.code for block in blocks(text) if block.language == "sh")
    assert [line.split()[1] for line in commands.splitlines()] == ["init", "prune-and-export", "prune-and-export"]
    page = tmp_path / "page.md"
    page.write_text(f"<!-- run -->\n```sh\n{commands}```\n", encoding="utf-8")
    run_page(page)
    assert {"model.onnx", "baseline.onnx", "plan.json", "report.html", "evidence.html"} <= {
        path.name for path in Path("slim").iterdir()
    }


def test_the_readmes_ci_step_names_inputs_and_options_that_there_are():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (step,) = yaml.safe_load(next(block.code for block in blocks(text) if block.language == "yaml"))
    inputs = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["inputs"]
    assert set(step["with"]) <= set(inputs)
    known = {option for one in typer.main.get_command(app).commands["prune-and-export"].params for option in one.opts}
    assert set(re.findall(r"--[a-z][a-z-]*", text)) <= known | {"--resume", "--recipe", "--dry-run", "--baseline"}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_the_readme_is_for_the_first_minute():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


def test_a_page_that_shows_what_did_not_come_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- run -->\n```python\nprint('3 kept')\n```\n\n```text\n4   kept\n```\n", encoding="utf-8")
    assert run_page(page) == 1
    page.write_text(page.read_text(encoding="utf-8").replace("4   kept", "4 gone"), encoding="utf-8")
    with pytest.raises(AssertionError, match="shows '4 gone'"):
        run_page(page)


def test_every_public_name_has_its_place_in_the_reference():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: secateur\.(\w+)$", text, re.MULTILINE)) == sorted(NAMES)


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_for_nothing_outside(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    found = list(site.rglob("*.html"))
    assert len(found) > 10
    for path in found:
        html = path.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:link|script|img|iframe|source)\b[^>]*\b(?:href|src)="((?:https?:)?//[^"]*)"', html)
        assert not fetched, f"{path.name}: {fetched}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name
    modules = (site / "reference" / "prune.html").read_text(encoding="utf-8")
    for name in (path.stem for path in (ROOT / "prune").glob("*.py") if path.stem != "__init__"):
        assert f'id="{name}"' in modules or f'id="secateur.prune.{name}"' in modules
    schema = json.loads((ROOT / "export" / "report" / "templates" / "report.schema.json").read_text(encoding="utf-8"))
    fields = (site / "reference" / "report.html").read_text(encoding="utf-8")
    for name in schema["properties"]:
        assert f"<code>{name}</code>" in fields
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "--require-drop-below" in commands
    assert "<td><code>--macs</code></td>" in commands
