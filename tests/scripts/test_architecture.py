"""The architecture page against the code: picture and tables in step, every file and name that it gives there."""

import ast
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not ((ROOT / "Makefile").is_file() and (ROOT / "pyproject.toml").is_file()):
    pytest.skip("needs the checkout, not an installed package", allow_module_level=True)
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"


def listed_rooms():
    """The first cells of CONTRIBUTING's table of rooms, lowest first."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    table = lines[lines.index("<!-- floors -->") : lines.index("<!-- end -->")]
    return [line.split("|")[1].strip(" `") for line in table if line.startswith("| `")]


def rows_between(mark):
    """The cells of all table rows in a part of the page, heads left out."""
    part = PAGE.split(f"<!-- {mark} -->\n", 1)[1].split("\n<!-- end -->", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    heads = {index - 1 for index, line in enumerate(lines) if set(line) <= set("|-: ")}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for index, line in enumerate(lines)
        if index not in heads and index - 1 not in heads
    ]


def place_in(row):
    """The file that a row gives, and the names in it."""
    (cell,) = [cell for cell in row if "<br>" in cell]
    file, names = re.fullmatch(r"`([\w/]+\.py)`<br>((?:`[\w.]+`(?:, |$))+)", cell).groups()
    return file, re.findall(r"[\w.]+", names)


def defined_in(path):
    """Functions and classes at the top of a module, and the methods of these classes as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


EQUATIONS, FLOW, PACKAGES = rows_between("equations"), rows_between("flow"), rows_between("architecture: packages")


@pytest.fixture(scope="module")
def picture():
    return ET.parse(ROOT / "docs" / "architecture.svg").getroot()


@pytest.fixture
def copy(tmp_path):
    """A copy of what the script reads and writes, and a function that runs it there."""
    for name in ("CONTRIBUTING.md", "scripts/architecture.py", "docs/architecture.md", "docs/architecture.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    for room in listed_rooms():
        shutil.copytree(ROOT / room, tmp_path / room, ignore=lambda folder, names: {"__pycache__"} & set(names))

    def run(*options):
        command = [sys.executable, "scripts/architecture.py", *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return tmp_path, run


def test_picture_and_page_are_in_step_with_the_code():
    command = [sys.executable, "scripts/architecture.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_import_more_or_less_is_found_and_written(copy):
    folder, run = copy
    assert run("--check").returncode == 0
    module = folder / "explain" / "scores.py"
    module.write_text(f"{module.read_text(encoding='utf-8')}\nfrom ..network import hooks\n", encoding="utf-8")
    before = {path: (folder / path).read_bytes() for path in ("docs/architecture.svg", "docs/architecture.md")}
    done = run("--check")
    assert (done.returncode, "make figures" in done.stdout) == (1, True)
    assert all(path in done.stdout and (folder / path).read_bytes() == text for path, text in before.items())
    assert run().returncode == 0
    assert all((folder / path).read_bytes() != text for path, text in before.items())
    assert run("--check").returncode == 0
    shutil.copyfile(ROOT / "explain" / "scores.py", module)
    assert run().returncode == 0
    assert all((folder / path).read_bytes() == text for path, text in before.items())


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("CONTRIBUTING.md", "| `common` | ", "| `common` | moved, ", "docs/architecture.svg"),
        ("explain/gap/__init__.py", '"""gAP, ', '"""It is gAP, ', "docs/architecture.md"),
        ("docs/architecture.svg", "</title>", ".</title>", "docs/architecture.svg"),
        ("docs/architecture.md", "<!-- architecture: imports -->", "", "must have the blocks packages, imports"),
        ("CONTRIBUTING.md", "| `common` | ", "| common | ", "common: imported, but no room"),
    ],
)
def test_any_other_drift_is_found_too(copy, name, old, new, says):
    folder, run = copy
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    done = run("--check")
    assert done.returncode != 0
    assert says in done.stdout + done.stderr


def test_the_rooms_are_those_of_contributing_in_the_picture_and_on_the_page(picture):
    rooms = listed_rooms()[::-1]
    assert len(rooms) == 7
    assert [one.text for one in picture.iter(f"{SVG}text") if one.get("class") == "room"] == rooms
    assert [row[0].strip("*`") for row in PACKAGES if row[0].startswith("**")] == rooms
    (prose,) = re.findall(r"## The rooms\n(.*?)<!--", PAGE, re.DOTALL)
    assert set(rooms) <= set(re.findall(r"`(\w+)`", prose))


def test_every_package_is_in_the_picture_and_on_the_page_with_a_file_that_is_there(picture):
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for room in listed_rooms()
        for path in (ROOT / room).rglob("__init__.py")
    }
    shown = [one.text for one in picture.iter(f"{SVG}text") if one.get("class") == "package"]
    assert sorted(shown) == sorted(name.split("/", 1)[1] for name in folders if "/" in name)
    assert {row[0].strip("*`") for row in PACKAGES} == folders
    for row in PACKAGES:
        assert row[1]
        assert (ROOT / row[0].strip("*`") / row[2].strip("`")).is_file(), row


def test_the_counts_are_those_of_the_import_statements(picture):
    """Counted from the text: a relative import with more dots than the file is deep leaves its room."""
    counts = Counter()
    for room in listed_rooms():
        for path in (ROOT / room).rglob("*.py"):
            depth = len(path.relative_to(ROOT).parts)
            text = path.read_text(encoding="utf-8")
            counts.update((room, other) for other in re.findall(rf"^\s*from \.{{{depth}}}(\w+)", text, re.MULTILINE))
    assert counts
    shown = {}
    for group in picture.iter(f"{SVG}g"):
        own, other, count = re.fullmatch(r"(\w+) imports from (\w+): (\d+)", group.find(f"{SVG}title").text).groups()
        assert group.find(f"{SVG}text").text == count
        shown[own, other] = int(count)
    assert shown == counts
    columns = listed_rooms()[-2::-1]
    rows = {row[0].strip("`"): row[1:] for row in rows_between("architecture: imports")}
    cells = {(own, other): cell for own, row in rows.items() for other, cell in zip(columns, row, strict=True)}
    assert {pair: int(cell) for pair, cell in cells.items() if cell} == counts


def test_no_text_of_the_picture_leaves_its_box(picture):
    """By the widest letters of the fonts that it names, in units of the picture."""
    boxes = [{key: float(one.get(key)) for key in ("x", "y", "width", "height")} for one in picture.iter(f"{SVG}rect")]
    widths = {"room": 17 * 0.61, "package": 12.5 * 0.61, "count": 13 * 0.7, None: 13 * 0.51}
    for text in picture.iter(f"{SVG}text"):
        x, y, width = float(text.get("x")), float(text.get("y")), len(text.text) * widths[text.get("class")]
        x -= width / 2 if text.get("class") == "count" else 0
        around = [
            box
            for box in boxes
            if box["x"] <= x and x + width <= box["x"] + box["width"] and box["y"] < y < box["y"] + box["height"]
        ]
        assert around, text.text
    whole = [float(part) for part in picture.get("viewBox").split()]
    assert all(box["x"] + box["width"] <= whole[2] and box["y"] + box["height"] <= whole[3] for box in boxes)


@pytest.mark.parametrize("row", [*EQUATIONS, *FLOW], ids=lambda row: "-".join(row)[:60])
def test_every_file_of_the_tables_is_there_and_defines_what_they_name(row):
    file, names = place_in(row)
    assert set(names) <= defined_in(ROOT / file)


def test_the_flow_is_that_of_the_code():
    """Every call of the package's own names in `prune_and_export`, arguments before the call that takes them."""
    path = ROOT / "pipeline" / "prune_and_export.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    files = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            files |= {alias.name: folder.joinpath(*node.module.split(".")).with_suffix(".py") for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            files[node.name] = path
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "prune_and_export"]
    called = []

    def visit(node):
        for child in ast.iter_child_nodes(node):
            visit(child)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in files:
            called.append((files[node.func.id].relative_to(ROOT).as_posix(), node.func.id))

    for statement in function.body:
        if not isinstance(statement, ast.Return):
            visit(statement)
    assert [(file, name) for file, (name,) in map(place_in, FLOW)] == called


def test_the_equations_of_the_papers_are_all_there():
    """gAP's 1 to 5 and PICNN's 1 to 10, each in its own part."""
    part = PAGE.split("<!-- equations -->\n", 1)[1]
    for title, last in (("gAP", 5), ("PICNN", 10)):
        own = part.split(f"\n### {title}\n", 1)[1].split("\n### ", 1)[0]
        cells = re.findall(r"^\| ([\d, ]+) \|", own, re.MULTILINE)
        assert set(range(1, last + 1)) <= {int(number) for cell in cells for number in cell.split(",")}


def test_the_files_that_hold_the_methods_are_all_named():
    """Every module of a method's folder, but those that only carry data between the others, is the home of an equation."""
    named = {place_in(row)[0] for row in EQUATIONS}
    carriers = {
        "explain/gap/decisions.py",
        "explain/gap/decomposition.py",
        "explain/gap/levels.py",
        "explain/gap/rankers.py",
    }
    for method in ("gap", "shapley", "agic", "picnn"):
        modules = {f"explain/{method}/{path.name}" for path in (ROOT / "explain" / method).glob("*.py")}
        assert modules - {f"explain/{method}/__init__.py"} - carriers <= named
