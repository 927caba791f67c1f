"""The report page as a browser shows it: from disk, by keyboard, at every width, on paper; and its links."""

import re

import pytest

from secateur.export.report.page_view import class_rows, headings, layer_rows
from secateur.export.report.rendering import to_html

FOCUSED = "document.activeElement && (document.activeElement.getAttribute('href') || document.activeElement.tagName)"


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


def test_older_reports_without_intervals_are_drawn_too(report):
    text = to_html(report)
    assert "Images per second" in text
    assert class_rows(report)[0]["interval"] is None
