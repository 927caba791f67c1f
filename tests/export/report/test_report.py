import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import jsonschema
import pytest

from secateur.common.errors import InputError
from secateur.export.report.content import read_report, schema
from secateur.export.report.junit import to_junit
from secateur.export.report.rendering import to_html, to_markdown, to_model_card
from secateur.export.report.report import write_report
from secateur.export.report.tables import closing_rows, headline

HOSTILE = "<script>alert('x')</script>|`a`"  # as in conftest.py


def trial(left, points, low, high, limit=1.0):
    return {"fraction": left + 0.01, "left": left, "points": points, "low": low, "high": high, "holds": high <= limit}


@pytest.fixture(scope="module")
def searched(report):
    """The same after a search of four tries, the last shipped, and two rounds; one drop is far beyond the limit."""
    trials = [
        trial(0.49, 0.2, -0.3, 0.8),
        trial(0.12, 64.0, 60, 68),
        trial(0.3, 1.4, 0.5, 2.2),
        trial(0.4, 0.5, 0, 1.0),
    ]
    steps = [{"name": "bn", "divergence_before": 2.0, "divergence_after": 3.0, "kept": False}]
    return {
        **report,
        "search": {"max_drop": 1.0, "chosen": 3, "trials": trials},
        "rounds": [{"steps": steps}, {"steps": report["repair"]["steps"]}],
        "inputs": {**report["inputs"], "images": {"test": 500, "validation": 300}},
    }


@pytest.fixture(scope="module")
def barren(searched):
    """The same after a search in which nothing held."""
    trials = [trial(0.49, 3.0, 2.0, 4.0), trial(0.98, 0.0, -1.5, 1.5)]
    return {**searched, "search": {"max_drop": 1.0, "chosen": None, "trials": trials}, "rounds": [{"steps": []}]}


@pytest.fixture(scope="module", params=[False, True], ids=["without times", "with times"])
def locked(report, request):
    """The same with two reasons for locks, one of them hard to set, and, with a latency table, their time."""

    def shares(macs, params, latency):
        return {"macs": macs, "params": params, **({"latency": latency} if request.param else {})}

    groups = [{"name": HOSTILE, "layers": [HOSTILE, "b"], "units": 8, "shares": shares(0.25, 0.125, 0.3)}]
    head = [{"name": "head", "layers": ["head"], "units": 4, "shares": shares(0.0004, 0.02, 0.001)}]
    return {
        **report,
        "locked": {
            "shares": shares(0.2504, 0.145, 0.301),
            "outside": shares(0.0, 0.01, 0.1),
            "lowest": {"macs": 0.30000000000000004, "params": 0.16, "size": 0.162}
            | ({"latency": 0.4321} if request.param else {}),
            "locks": [
                {
                    "reason": f"its channels are mixed by {HOSTILE}.",
                    "groups": groups,
                    "shares": shares(0.25, 0.125, 0.3),
                },
                {"reason": "its units are the classes.", "groups": head, "shares": shares(0.0004, 0.02, 0.001)},
            ],
        },
    }


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.bad, self.loads, self.count = [], [], [], {}

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.loads += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]
        if tag not in ("meta", "link", "br", "img", "input", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.bad.append(tag)


def test_schema_accepts_the_report_and_refuses_a_wrong_one(report):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(report, schema())
    for change in ({"schema_version": 2}, {"surprise": 1}, {"provider": "abacus"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**report, **change}, schema())


@pytest.mark.parametrize("kind", ["report", "searched", "barren"])
def test_page_is_well_formed_loads_nothing_and_escapes_names(request, kind):
    page = to_html(request.getfixturevalue(kind))
    parser = Tags()
    parser.feed(page)
    assert parser.bad == []
    assert parser.open == []
    assert parser.loads == []
    assert page.count("<h1>") == 1
    assert set(re.findall(r'aria-labelledby="([a-z]+)"', page)) <= set(re.findall(r' id="([a-z]+)"', page))
    assert "script" not in parser.count
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("kind", ["report", "searched", "barren"])
def test_markdown_tables_hold_their_columns_and_escape_names(request, kind):
    text = to_markdown(request.getfixturevalue(kind))
    assert "<script>" not in text
    assert len(text) < 60_000
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        if rows:
            widths = {len(row.replace("\\|", "").strip("|").split("|")) for row in rows}
            assert len(widths) == 1, block


@pytest.mark.parametrize("length", [20, 3000])
def test_markdown_stays_below_60_kilobytes_whatever_the_network(report, searched, length):
    """A thousand classes, layers, steps, tries and notes, with names as long as that; what was left out is told."""

    def name(index):
        return f"{index}|`é<".ljust(length, "n")

    large = {
        **searched,
        "layers": [{**report["layers"][0], "name": name(index), "locked": name(index)} for index in range(1000)],
        "rounds": searched["rounds"] * 500,
        "notes": [name(index) for index in range(1000)],
        "search": {**searched["search"], "trials": searched["search"]["trials"] * 250},
        "model": name(0),
    }
    for side in ("baseline", "pruned"):
        large[side] = {**report[side], "accuracy_per_class": {name(index): 0.5 for index in range(1000)}}
    large["pruned"]["accuracy_per_class"][name(7)] = 0.25
    text = to_markdown(large)
    assert len(text.encode()) < 60_000
    for what in ("layers", "classes", "steps", "notes"):
        (left,) = re.findall(rf"The other (\d+) {what} are in report\.json", text)
        rows = 1 if what == "classes" else len(re.findall(r"\\\|\\`é", text))
        assert 0 < int(left) < 1000 or rows
    assert "secateur prune-and-export" in text
    assert text.count("<details>") == text.count("</details>")


def test_schema_knows_searches_and_rounds(searched, barren):
    for one in (searched, barren):
        jsonschema.validate(one, schema())


@pytest.mark.parametrize(
    ("budget", "value", "words"),
    [
        ({"macs": 0.5}, 0.4949, "cut to 49.5% of the MACs"),
        ({"params": 0.4}, 0.399, "cut to 39.9% of the parameters"),
        ({"size": 0.3}, 0.3, "cut to 30.0% of the bytes of weights"),
        ({}, 0.5, "cut to 50.0% of the MACs"),
    ],
)
def test_headline_is_in_what_the_budget_was_given_in(report, budget, value, words):
    gates = [{**report["gates"][0], "value": value}, *report["gates"][1:]]
    one = {**report, "gates": gates, "recipe": {**report["recipe"], "budget": budget}}
    assert headline(one) == words
    assert headline({**one, "rounds": one["rounds"] * 3}) == f"{words} in 3 rounds"
    assert words in to_html(one)
    assert words in to_markdown(one)


def test_headline_of_a_search(searched, barren):
    told = headline(searched)
    assert told.startswith("cut to 50.0% of the MACs in 2 rounds")
    assert "at most 1 point on validation" in told
    assert headline(barren).startswith("not cut")


def test_every_try_stands_in_both_tables_and_one_is_shipped(searched):
    page, text = to_html(searched), to_markdown(searched)
    for row in ("0.20 (-0.30 to 0.80)", "64.00 (60.00 to 68.00)", "1.40 (0.50 to 2.20)", "0.50 (0.00 to 1.00)"):
        assert page.count(f"<td>{row}</td>") == text.count(f"| {row} |") == 1
    assert text.count("| **exported** |") == 1
    assert "| 4 | 41.0% | 40.0% | 0.50 (0.00 to 1.00) | **exported** |" in text
    assert len(re.findall(r"<tr class=chosen><th scope=.row.>4</th>.*<td[^>]*>exported</td></tr>", page)) == 1


def test_every_round_shows_its_steps(searched, report):
    for text in (to_html(searched), to_markdown(searched)):
        assert text.index("round 1: bn") < text.index("round 2: bn")
    assert "round 1" not in to_html(report)


def test_blocks_that_pass_their_input_on_are_named(searched, schema_of_reports):
    passing = {"passing": ["layer1.0.conv2"], "divergence_passing": 0.25, "divergence_with_constants": 0.5}
    told = {**searched, "repair": {**searched["repair"], **passing}}
    jsonschema.validate(told, schema_of_reports)
    page = to_html(told)
    assert "1 removed branch adds nothing any more (layer1.0.conv2)" in page
    assert "nothing any more" not in to_html(searched)
    told["repair"].update(passing=["a", "b"], divergence_passing=None, divergence_with_constants=None)
    assert "2 removed branches add nothing any more (a, b): what they read is passed on." in to_html(told)


def test_junit_counts_failures(report):
    root = ElementTree.fromstring(ElementTree.tostring(to_junit(report).getroot()))
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["drop", "speedup"]


def test_closing_table_gives_changes_with_their_sign(report):
    rows = {row[0]: row[1:] for row in closing_rows(report)}
    assert rows["top-1 accuracy"] == ("90.00%", "88.00%", "-2.00 points (-3.00 to -1.00)")
    assert rows["MACs"] == ("4.00 M", "2.00 M", "2.00x fewer")
    assert rows["latency, batch 1"][2] == "1.40x speedup (1.30 to 1.50)"


def test_write_and_read_back(report, tmp_path):
    paths = write_report(report, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(paths)
    assert read_report(tmp_path) == report
    (tmp_path / "report.json").write_text(json.dumps({**report, "schema_version": 99}))
    with pytest.raises(InputError, match="schema version"):
        read_report(tmp_path)


def test_locks_are_told_with_their_share_and_the_lowest_budgets(locked, report):
    jsonschema.validate(locked, schema())
    timed = "latency" in locked["locked"]["lowest"]
    page, text = to_html(locked), to_markdown(locked)
    tags = Tags()
    tags.feed(page)
    assert not tags.bad
    assert not tags.open
    lowest = "--macs 0.301, --params 0.16, --size 0.162" + (", --latency 0.433" if timed else "")
    for shown in (page, text):
        assert lowest in shown
        assert "<script>alert" not in shown.replace("\\<script\\>", "")
        assert shown.count("25.0%") >= 1
        assert ("30.0%" in shown) == timed
    assert ("30.1% of the time" in page) == timed
    assert "Locked groups: 25.0% of the MACs and 14.5% of the parameters" in text
    (row,) = [line for line in text.splitlines() if "its units are the classes" in line and line.startswith("| head")]
    assert row == "| head | 0.0% | 2.0% |" + (" 0.1% |" if timed else "") + " its units are the classes. |"
    assert "Locked groups" not in to_html(report) + to_markdown(report), "reports of before have none"


def test_best_effort_is_shown_as_neither_passed_nor_failed(report):
    (budget, *rest) = [{**gate, "verdict": "pass"} for gate in report["gates"]]
    accepted = {**report, "exit_code": 0, "gates": [{**budget, "verdict": "best effort"}, *rest]}
    jsonschema.validate(accepted, schema())
    page, text = to_html(accepted), to_markdown(accepted)
    assert "No gate failed; the budget was missed" in page
    assert '<span class="verdict effort">best effort</span>' in page
    assert "## secateur: passed, budget missed (best effort)" in text
    suite = to_junit(accepted).getroot()[0]
    assert (suite.get("failures"), suite.get("tests")) == ("0", str(len(accepted["gates"])))
    assert suite[0].findtext("system-out").startswith("best effort")
    assert "which best effort accepts" in to_model_card(accepted)
