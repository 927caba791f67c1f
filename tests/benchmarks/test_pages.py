"""Every figure in the documentation equals its results, and a figure that does not is found."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks" / "results").is_dir():
    pytest.skip("needs the checkout, not an installed package", allow_module_level=True)
sys.path.insert(0, str(ROOT))
from benchmarks.pages import blocks, pictures  # noqa: E402

PAGES = {path.relative_to(ROOT).as_posix(): text for path, text in blocks.walk(ROOT)}
NAMES = [(page, found["name"]) for page, text in PAGES.items() for found in blocks.BLOCK.finditer(text)]
NO_MEASUREMENT = {"docs/methods/picnn.md", "docs/architecture.md"}
"""Pages with a table of settings or of sections of papers, in which a number is no measurement."""


def test_the_command_finds_everything_in_step():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pages", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("page", "name"), NAMES)
def test_every_block_is_in_step_with_its_results(page, name):
    assert name not in blocks.drift(PAGES[page])


@pytest.mark.parametrize("results", sorted(path.name for path in blocks.RESULTS.glob("*.json")))
def test_every_result_is_shown(results):
    assert any(blocks.maker_of(name)[1] == results for _, name in NAMES), f"no page shows {results}"


def changed(value, done):
    """The same results with one number changed: the first of a key that is shown."""
    if isinstance(value, dict):
        return {key: changed(one, done) for key, one in value.items()}
    if isinstance(value, list):
        return [changed(one, done) for one in value]
    if isinstance(value, float) and not done:
        done.append(value)
        return value + 1.5
    return value


@pytest.mark.parametrize(
    ("page", "file", "block", "path"),
    [
        ("docs/benchmarks/pruning.md", "pruning.json", "pruning.where_it_comes_from", ["rows"]),
        (
            "docs/benchmarks/consensus.md",
            "consensus.json",
            "consensus.resnet20",
            ["sections", "resnet20", "gap, seed 1"],
        ),
        ("docs/benchmarks/gap.md", "gap.json", "gap.table_1", ["sections", "table 1"]),
        ("docs/benchmarks/latency_proof.md", "latency_proof.json", "latency_proof.proof", ["cases"]),
        ("docs/benchmarks/resnet50.md", "resnet50.json", "resnet50.macs_left", []),
    ],
)
def test_a_changed_result_is_found_by_name(tmp_path, page, file, block, path):
    shutil.copytree(blocks.RESULTS, tmp_path / "results")
    content = json.loads((tmp_path / "results" / file).read_text())
    inside, done = content, []
    for key in path:
        inside = inside[key]
    if block == "pruning.where_it_comes_from":
        row = next(row for row in inside if (row["by"], row["repair"], row["epochs"]) == ("secateur", "bn", 0))
        row["drop_points"] += 1
    elif block == "latency_proof.proof":
        inside["digits, batch 1"]["summary"]["hold_one"] -= 1
    elif block == "resnet50.macs_left":
        next(iter(content.values()))["macs_left"]["whole"] = 0.9
    elif block == "consensus.resnet20":
        inside[0]["drop"] += 1
    else:
        inside["digits"] = changed(inside["digits"], done)
    (tmp_path / "results" / file).write_text(json.dumps(content))
    assert block in blocks.drift(PAGES[page], tmp_path / "results")
    assert block not in blocks.drift(blocks.filled(PAGES[page], tmp_path / "results"), tmp_path / "results")


def test_a_changed_page_is_found_by_name(tmp_path):
    text = PAGES["docs/benchmarks/kept_classes.md"]
    assert blocks.drift(text.replace("85.1%", "85.2%")) == ["kept_classes.states"]
    assert blocks.filled(text.replace("85.1%", "85.2%")) == text


def test_a_changed_picture_is_found(tmp_path):
    for name in pictures.PICTURES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    assert pictures.differing(root=tmp_path) == []
    path = tmp_path / "docs/benchmarks/pruning.svg"
    path.write_text(path.read_text().replace("<path d=", "<path  d=", 1))
    assert pictures.differing(root=tmp_path) == ["docs/benchmarks/pruning.svg"]


def test_intervals_over_seeds_are_those_that_the_benchmark_wrote():
    digits = json.loads((blocks.RESULTS / "picnn.json").read_text())["sections"]["digits"]
    table = blocks.BLOCK.search(
        PAGES["docs/benchmarks/picnn.md"], PAGES["docs/benchmarks/picnn.md"].index("picnn.digits") - 20
    )["body"]
    for rows in digits.values():
        (mean,) = (row for row in rows if row["training seed"] == "mean")
        for key in ("acc1", "acc2", "acc3"):
            assert blocks.interval(mean[key], *mean[f"{key} interval"], 1) in table


def test_an_unknown_block_says_what_is_missing():
    with pytest.raises(LookupError, match=r"benchmarks/pages/gap\.py has no nothing\(\)"):
        blocks.filled("<!-- figures: gap.nothing -->\n<!-- end -->")


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_row_of_a_table_has_as_many_cells_as_its_header(page):
    for table in re.findall(r"(?:^\|.*\|\n)+", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL), re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in table.splitlines()}
        assert len(counts) == 1, table


@pytest.mark.parametrize("page", sorted(set(PAGES) - NO_MEASUREMENT))
def test_no_table_of_figures_is_written_by_hand(page):
    by_hand = re.sub(r"```.*?```|`[^`]*`", "", blocks.BLOCK.sub("", PAGES[page]), flags=re.DOTALL)
    rows = [line for line in by_hand.splitlines() if line.startswith("|") and re.search(r"\d\.\d", line)]
    assert not rows, f"{page}: {rows[0]}"
