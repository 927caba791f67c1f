"""The report page as a browser shows it: from disk, by keyboard, at every width, on paper; its links and its charts."""

import copy
import re
import xml.etree.ElementTree as ElementTree

import pytest
from scipy import stats

from secateur.export.report.charts.classes import class_chart
from secateur.export.report.charts.throughput import speedup_chart, throughput_chart
from secateur.export.report.charts.widths import width_profile
from secateur.export.report.page_view import batch_rows, class_rows, headings, layer_rows
from secateur.export.report.rendering import to_html

FOCUSED = "document.activeElement && (document.activeElement.getAttribute('href') || document.activeElement.tagName)"


@pytest.fixture(scope="module")
def full(report):
    """Three hundred layers, sixty classes, four batch sizes, a search, evidence, and names that are hard to set."""
    made = copy.deepcopy(dict(report))
    counts = {f"class {index}": 40 for index in range(59)} | {"<i>&".ljust(70, "m"): 40}
    for side, lost in (("baseline", 0), ("pruned", 6)):
        shares = {name: (38 - (index % 7) * bool(lost) * (index % 5 == 0)) / 40 for index, name in enumerate(counts)}
        latency = {
            str(batch): {
                "median_ms": 0.3 * batch / (1 + bool(lost)),
                "p95_ms": 0.4 * batch,
                "samples": 50,
                "low_ms": 0.28 * batch / (1 + bool(lost)),
                "high_ms": 0.33 * batch / (1 + bool(lost)),
            }
            for batch in (1, 8, 32, 128)
        }
        made[side] |= {"accuracy_per_class": shares, "latency": latency}
    ratio = {"ratio": 2.0, "low": 1.8, "high": 2.2}
    floor = {"ratio": 1.01, "low": 0.98, "high": 1.04}
    made["ratios"]["latency"] = {str(batch): ratio for batch in (1, 8, 32, 128)}
    made["noise_floor"] = {str(batch): floor for batch in (1, 8, 32, 128)}
    made["inputs"]["test_per_class"] = counts
    made["evidence"] = "evidence.html"
    made["layers"] = [
        {
            "name": f"features.{index}/a b#c",
            "group": "g",
            "before": 16 + index,
            "after": 8 + index // 2,
            "aligned": True,
            "decided_by": "gap",
            "locked": "",
            "highest_gone": 0.5,
            "lowest_kept": 0.6,
        }
        for index in range(300)
    ]
    made["search"] = {
        "max_drop": 1.0,
        "chosen": 0,
        "trials": [{"fraction": 0.5, "left": 0.49, "points": 0.2, "low": -0.3, "high": 0.8, "holds": True}],
    }
    one = {"target": 0.7, "planned": 0.69, "measured": 0.71, "low": 0.7, "high": 0.73, "narrowest": False}
    made["latency_budget"] = {
        "asked": 0.7,
        "planned": 0.69,
        "measured": 0.71,
        "low": 0.7,
        "high": 0.73,
        "batch": 1,
        "provider": "cpu",
        "chosen": 0,
        "tries": [one],
        "table": {"sha256": "0" * 64, "layers": 9, "measured_points": 40, "offset_ms": 0.02},
    }
    made["inputs"]["images"] |= {"validation": 300}
    return made


@pytest.fixture(scope="module")
def page(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_html(full), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("width", "scheme"), [(400, "light"), (400, "dark"), (768, "light"), (1280, "dark"), (1920, "light")]
)
def test_page_from_disk_is_quiet_and_fits(page, browser, width, scheme):
    with browser.open(page, width, scheme) as opened:
        assert not opened.scrolls_sideways()
        assert not opened.faults
        assert not opened.requests


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "dark")])
def test_page_has_no_serious_fault_of_accessibility(full, tmp_path, browser, width, scheme):
    """Every section, with few rows: axe-core looks at every node, and more rows of a kind add nothing."""
    classes = dict(list(full["pruned"]["accuracy_per_class"].items())[-3:])
    short = {**full, "layers": full["layers"][:3], "pruned": {**full["pruned"], "accuracy_per_class": classes}}
    path = tmp_path / "report.html"
    path.write_text(to_html(short), encoding="utf-8")
    with browser.open(path, width, scheme) as opened:
        assert not opened.serious()


@pytest.mark.parametrize("width", [400, 1280])
def test_every_section_is_reached_by_keyboard(page, browser, width):
    names = [name for name, _ in headings(page.read_text(encoding="utf-8"))]
    assert len(names) >= 8
    with browser.open(page, width) as opened:
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate(FOCUSED) == "#main"  # past the navigation, for those who have heard it
        for name in names:
            opened.page.keyboard.press("Tab")
            assert opened.page.evaluate(FOCUSED) == f"#{name}"
        for name in names:
            opened.page.locator(f'nav a[href="#{name}"]').focus()
            opened.page.keyboard.press("Enter")
            box = opened.page.locator(f"h2#{name}").bounding_box()
            bar = opened.page.locator("nav.sections").bounding_box()
            assert 0 <= box["y"] < 900
            assert width > 1180 or box["y"] >= bar["y"] + bar["height"] - 1  # not under the bar
        regions = opened.page.locator("[role=region]")
        assert all(regions.nth(index).get_attribute("tabindex") == "0" for index in range(regions.count()))


def test_page_prints_everything(page, browser):
    with browser.open(page) as opened:
        opened.page.emulate_media(media="print")
        assert not opened.page.locator("nav.sections").is_visible()
        assert opened.page.locator("summary", has_text="Recipe").locator("xpath=../pre").is_visible()
        tall = opened.page.locator(".tall").last
        assert tall.evaluate("node => node.scrollHeight <= node.clientHeight + 1")
        assert opened.page.pdf(format="A4")[:5] == b"%PDF-"


def test_layers_lead_to_the_evidence_where_there_is_some(full, page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r'<a href="(evidence[^"]+)">', text)
    assert len(links) == len(full["layers"])
    assert links[0] == "evidence.html#layer-features.0%2Fa%20b%23c"
    assert "evidence" not in to_html({**full, "evidence": None})
    assert layer_rows({**full, "evidence": None})[0]["href"] is None


def test_words_say_why_a_layer_is_as_it_is(full):
    layers = [
        {**full["layers"][0], "locked": "its reason"},
        {**full["layers"][0], "after": 0},
        {**full["layers"][0], "after": full["layers"][0]["before"]},
        full["layers"][0],
    ]
    why = [row["why"] for row in layer_rows({**full, "layers": layers})]
    assert why == ["its reason", "removed with its whole branch", "kept whole", "gap"]


def test_classes_come_by_what_moved_most_with_wilsons_interval(full):
    rows = class_rows(full)
    moved = [abs(row["points"]) for row in rows]
    assert moved == sorted(moved, reverse=True)
    for row in rows:
        right = round(row["after"] * 40)
        peer = stats.binomtest(right, 40).proportion_ci(method="wilson")
        assert row["interval"] == pytest.approx((peer.low, peer.high))


def shapes(text):
    return ElementTree.fromstring(text)


def test_class_chart_draws_what_the_rows_say():
    rows = [
        {"name": "<a>", "before": 1.0, "after": 0.5, "interval": (0.4, 0.6), "points": -50},
        {"name": "b", "before": 0.8, "after": 0.9, "interval": None, "points": 10},
    ]
    svg = shapes(class_chart(rows, "accuracy"))
    worse, better = svg.findall("g")
    assert (worse.get("class"), better.get("class")) == ("worse", "better")
    was, now = (float(circle.get("cx")) for circle in worse.findall("circle"))
    low, high = map(float, re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", worse.find("path").get("d"))[0])
    assert (now - low) / (was - now) == pytest.approx(0.2, abs=0.01)  # 0.1 of 0.5
    assert high - now == pytest.approx(now - low, abs=0.2)
    assert svg.find("title").text == "accuracy per class before and after"
    assert "50.00%" in svg.find("desc").text


def test_width_profile_is_in_proportion():
    layers = [{"name": "a", "before": 10, "after": 4}, {"name": "b", "before": 20, "after": 0}]
    svg = shapes(width_profile(layers))
    tall = [[float(rect.get("height")) for rect in group.findall("rect")] for group in svg.findall("g")]
    assert tall == [[50, 20], [100, 0]]


def test_latency_charts_draw_what_the_rows_say(full):
    rows = batch_rows(full)
    svg = shapes(throughput_chart(rows))
    was, now = svg.findall("g")
    y = [float(mark.find("circle").get("cy")) for series in (was, now) for mark in series.findall("g")]
    assert max(y[:4]) - min(y[:4]) == pytest.approx(0, abs=0.2)  # the same images a second at every batch size
    assert y[4] < y[0]  # pruned is faster, so higher
    svg = shapes(speedup_chart(rows))
    marks = svg.findall("g")
    assert [mark.find("text").text for mark in marks] == ["2.00"] * 4
    low, high = map(float, re.findall(r" ([\d.]+)V([\d.]+)", marks[0].find("path").get("d"))[0])
    assert float(marks[0].find("circle").get("cy")) == pytest.approx((low + high) / 2, abs=0.2)


def test_older_reports_without_intervals_are_drawn_too(report):
    text = to_html(report)
    assert "Images per second" in text
    assert class_rows(report)[0]["interval"] is None
