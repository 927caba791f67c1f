"""The report page as a browser shows it: from disk, by keyboard, at every width, on paper; and its links."""

import copy
import re

import jsonschema
import pytest

from secateur.export.report.page_view import class_rows, headings, layer_rows
from secateur.export.report.rendering import to_html, to_markdown
from secateur.export.report.tables import closing_rows, variant_cells

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


def test_a_report_of_a_gpu_shows_the_device_the_options_and_other_runtimes(report, schema_of_reports):
    ratio = {"ratio": 1.7, "low": 1.6, "high": 1.8}
    sides = [{"median_ms": ms, "p95_ms": ms, "samples": 9} for ms in (3.0, 2.0)]
    made = copy.deepcopy(dict(report))
    made["provider"], made["ratios"]["device_latency"] = "cuda", {"1": ratio}
    for side, ms in (("baseline", 0.9), ("pruned", 0.5)):
        made[side]["latency"]["1"]["device_median_ms"] = ms
    row = {"file": "model-fp16.onnx", "onnx_bytes": 9, "accuracy": 0.9, "drop": None, "peak_memory_bytes": None}
    row |= {"parity": {"top1_agreement": 1.0, "max_relative_difference": 1e-3}, "speedup": {"1": ratio}}
    row["device_speedup"] = {"1": {"ratio": 1.9, "low": 1.8, "high": 2.0}}
    for provider, shown in (
        ("cpu", "1.70x (1.60 to 1.80)"),
        ("cuda", "1.70x (1.60 to 1.80); on the device 1.90x (1.80 to 2.00)"),
    ):
        assert variant_cells({**made, "provider": provider, "variants": [row]})[0][5] == shown
    tried = {"difference": 1e-3, "speedup": 1.04, "problem": "", "kept": True}
    nothing = dict.fromkeys(("cpu_mhz", "gpu_sm_mhz", "gpu_memory_mhz", "gpu_watts", "gpu_celsius"))
    made["conditions"] = {
        "before": nothing,
        "after": nothing,
        "package_watts": None,
        "threads": 1,
        "cuda_graphs": False,
        "cuda": {
            "options": {"prefer_nhwc": "1"},
            "fused_biases": [{"file": "model.onnx", **tried}, {"file": "model-int8.onnx", **tried, "kept": False}],
        },
    }
    row = {"precision": "fp16", "batch": 64, "baseline": sides[0], "pruned": sides[1]}
    row |= {"speedup": ratio, "device_speedup": ratio}
    made["torch_times"] = {
        "rows": [{"runtime": name, **row} for name in ("onnxruntime", "torch", "torch.compile", "tensorrt")],
        "notes": ["torch.compile, fp32, batch 1: <no> compiler"],
    }
    for name in ("conditions", "torch_times"):
        jsonschema.validate(made[name], {"$defs": schema_of_reports["$defs"], **schema_of_reports["properties"][name]})
    assert ("on the device, batch 1", "0.900 ms", "0.500 ms", "1.70x speedup (1.60 to 1.80)") in closing_rows(made)
    for text in (to_markdown(made), to_html(made)):
        for words in (
            "ONNX Runtime, cuda",
            "torch, eager",
            "torch.compile",
            "ONNX Runtime, tensorrt",
            "1.70x (1.60 to 1.80)",
        ):
            assert words in text
        assert "in no file" not in text
        assert "<no>" not in text
    assert "Biases fused (fuse_conv_bias): model.onnx." in to_html(made)
    assert "on the device" not in to_html({**made, "provider": "cpu", "torch_times": None}), (
        "there is nothing to leave out"
    )
