"""What the documentation says runs: the examples of the public names, the README's and the pages' blocks, the site itself."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import secateur
from pages import run_page

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
