"""The evidence page as a browser shows it, and what is in it."""

import importlib.util
import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from secateur.explain.evidence.kernel_cards import GatheringSettings, gather_kernel_evidence
from secateur.explain.scores import RankingTask
from secateur.export.evidence.page import json_in_html
from secateur.export.evidence.sheets import make_sheet
from secateur.network.images.pictures import Preprocessing
from secateur.network.images.splits import Splits
from secateur.network.network import Network, Source
from secateur.pipeline.inputs import Inputs
from secateur.pipeline.recipe.recipe import Recipe
from secateur.pipeline.stages.evidence_page import verdicts_of, write_run_evidence

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">&amp;\u2028"
PLANNED = {"rank_by": "magnitude", "allocation": "uniform", "round_to": 1, "macs": 0.6}


def data_of(path):
    """What the page carries."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def inputs_of(noise_images):
    def build(network, images=None, **options):
        images = images or noise_images(40, network.input_shape, len(network.class_names))
        images = replace(images, preprocessing=network.preprocessing)
        splits = Splits(images, images, images, network.class_names, "")
        recipe = Recipe().override(**{"epochs": 0, "evidence_images": 3, **PLANNED, **options})
        return Inputs(recipe, network, splits, images, "cpu", (), "", {"calibration": "", "validation": ""})

    return build


@pytest.fixture(scope="module")
def network(tiny, network_of, noise_images, spread):
    network, images = spread(network_of(tiny("padded")), noise_images(40))
    names = (HOSTILE, "b" * 70, "cat", "dog")
    return replace(network, class_names=names, source=Source(f"{HOSTILE}.py:build")), images


@pytest.fixture(scope="module")
def page(network, inputs_of, tmp_path_factory, stages):
    inputs = inputs_of(*network, misclassified=2)
    scores = stages.explain(inputs)
    chosen = stages.plan(inputs, scores)
    path = tmp_path_factory.mktemp("page") / "evidence.html"
    return write_run_evidence(inputs, scores, chosen, path), scores, chosen


def test_a_person_sees_what_the_issue_asks_for(page, browser):
    path, scores, chosen = page
    with browser.open(path) as opened:
        tab = opened.page
        tab.wait_for_selector(".expand")
        assert tab.locator("#pictures button").count() == 5
        assert tab.locator("#pictures .wrong").count() == 2
        nodes = tab.locator(".node").count()
        tab.locator(".expand").first.click()  # a node expands
        expect(tab.locator(".expand").first).to_have_attribute("aria-expanded", "true")
        assert tab.locator(".node").count() > nodes
        tab.locator(".expand").first.click()
        expect(tab.locator(".node")).to_have_count(nodes)
        tab.get_by_role("button", name="Expand all").click()
        depth = tab.evaluate(
            "Math.max(...[...document.querySelectorAll('.node')].map(n => {"
            "let d = 0; for (let e = n; e; e = e.parentElement) d += e.matches('ul.branch'); return d; }))"
        )
        assert depth == 3  # three stages, down to the first
        blank = tab.evaluate(
            "[...document.querySelectorAll('.node canvas')].filter(c => {"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return !d.some(v => v); }).length"
        )
        assert blank == 0
        tab.fill("#search", "layer2.0.conv1 5")  # the search finds a kernel
        expect(tab.locator(".tile strong")).to_have_text(["layer2.0.conv1 · 5"])
        tab.locator(".tile").click()  # its card opens
        card = tab.locator("#card")
        expect(card).to_be_visible()
        shown = card.inner_text()
        assert f"{float(scores.layers['layer2.0.conv1'][5]):.3g}" in shown
        for method in ("magnitude (decided)", "gap", "taylor", "bn-scale"):
            assert method in shown
        assert card.locator(".profile dt").count() == 4
        assert card.locator(".patches li").count() == 9
        assert card.locator(".links a").count() >= 6
        group = next(group for group in chosen.groups if "layer2.0.conv1" in group.layers)
        assert card.locator(".badge").inner_text() == ("goes" if 5 in group.removed else "stays")
        card.locator(".links a").first.click()  # on to a neighbour
        expect(tab.locator("#card-title")).not_to_contain_text("layer2.0.conv1 · 5")
        tab.keyboard.press("Escape")
        expect(card).to_be_hidden()
        expect(tab).not_to_have_url(re.compile("#"))  # a dialog tells that it closed a task later
        assert tab.title().startswith("Evidence: ")
        assert (opened.faults, opened.requests) == ([], [])


def test_filters_agree_with_the_plan_and_the_profiles(page, browser):
    path, _, chosen = page
    carried = data_of(path)
    with browser.open(path) as opened:
        tab = opened.page

        def count():
            return int(tab.locator("#found").inner_text().split(" ")[0].replace("No", "0"))

        everything = count()
        assert everything == 8 + 8 + 8 + 16 + 16 + 32 + 32
        tab.select_option("#verdict", "goes")
        gone = sum(len(group.removed) * sum(layer != "linear" for layer in group.layers) for group in chosen.groups)
        assert count() == gone > 0
        tab.select_option("#verdict", "stays")
        assert count() == everything - gone
        tab.select_option("#verdict", "")
        tab.select_option("#class", "2")
        sites = [site for site in carried["sites"] if site["layer"] and not site["isClasses"]]
        strongest = [
            max(range(4), key=lambda label: own[label])
            for site in sites
            for own in site["profile"]
            if len(set(own)) > 1
        ]
        assert count() == strongest.count(2)
        tab.select_option("#class", "")
        tab.select_option("#layer", label="layer1.0.conv2 (8)")
        tab.select_option("#order", "high")
        names = tab.locator(".tile strong").all_inner_texts()
        order = page[1].layers["layer1.0.conv2"].argsort(descending=True).tolist()
        assert names == [f"layer1.0.conv2 · {kernel}" for kernel in order]


def test_keys_alone_do(page, browser):
    with browser.open(page[0]) as opened:
        tab = opened.page
        tab.focus("#pictures button >> nth=1")
        tab.keyboard.press("Enter")
        expect(tab.locator("#pictures button").nth(1)).to_have_attribute("aria-pressed", "true")
        tab.focus(".expand >> nth=0")
        tab.keyboard.press("Space")
        expect(tab.locator(".expand").first).to_have_attribute("aria-expanded", "true")
        tab.focus(".tile >> nth=0")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#card[open]")
        assert tab.evaluate("document.getElementById('card').contains(document.activeElement)")
        tab.keyboard.press("Escape")
        expect(tab.locator(".tile").first).to_be_focused()


def test_addresses_open_cards_and_layers(page, browser):
    path = page[0]
    with browser.open(path) as opened:
        tab, address = opened.page, path.resolve().as_uri()
        tab.goto(f"{address}#kernel-layer3.0.conv1-7")
        expect(tab.locator("#card-title")).to_have_text("layer3.0.conv1 · 7")  # told a task after the address
        tab.goto(f"{address}#layer-layer2.0.conv2")
        expect(tab.locator("#card")).to_be_hidden()
        expect(tab.locator(".tile strong")).to_have_count(16)
        assert set(tab.locator(".tile strong").all_inner_texts()) == {
            f"layer2.0.conv2 · {kernel}" for kernel in range(16)
        }
        tab.goto(f"{address}#kernel-nosuch-3")
        expect(tab.locator("#found")).to_contain_text("No kernel matches")
        assert opened.faults == []


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light"), (1920, "dark"), (400, "light")])
def test_axe_finds_no_serious_fault_at_any_width(page, browser, width, scheme):
    with browser.open(page[0], width, scheme) as opened:
        opened.page.wait_for_selector(".expand")
        opened.page.locator(".expand").first.click()
        assert opened.serious() == []
        assert not opened.scrolls_sideways()
        opened.page.locator(".tile").first.click()
        opened.page.wait_for_selector("#card[open] .links")
        assert opened.serious() == []
        assert not opened.page.evaluate("(b => b.scrollWidth > b.clientWidth)(document.getElementById('card'))")


def test_names_from_the_data_stay_text(page, browser):
    path = page[0]
    text = path.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert data_of(path)["classes"][0] == HOSTILE
    assert text.count("<script") == 2
    assert "\u2028" not in text[text.index('id="data"') :]
    with browser.open(path) as opened:
        opened.page.wait_for_selector(".expand")
        assert "taken" not in opened.page.title().replace(HOSTILE, "").split("Evidence")[0]
        assert opened.page.evaluate("document.title") != "taken"
        assert opened.page.locator("img").count() == 0
        assert HOSTILE.split("\u2028")[0] in opened.page.locator("#class").inner_text()
    assert json.loads(json_in_html({"a": "</script>&\u2029"})) == {"a": "</script>&\u2029"}


def test_a_hostile_layer_name_stays_text(network, inputs_of, browser, tmp_path, monkeypatch, stages):
    from secateur.pipeline.stages import evidence_page as evidence_stage

    inputs = inputs_of(*network, evidence_images=1)
    gather = evidence_stage.gather_kernel_evidence

    def renamed(*arguments):
        found = gather(*arguments)
        sites = tuple(replace(site, name=HOSTILE) if site.name == "conv1" else site for site in found.sites)
        return replace(found, sites=sites, neighbours=None)

    monkeypatch.setattr(evidence_stage, "gather_kernel_evidence", renamed)
    path = write_run_evidence(inputs, stages.explain(inputs), None, tmp_path / "evidence.html")
    with browser.open(path) as opened:
        assert opened.page.evaluate("document.title") != "taken"
        opened.page.locator(".tile").first.click()
        expect(opened.page.locator("#card-title")).to_have_text(re.compile(f"^{re.escape(HOSTILE[:40])}"))
        expect(opened.page.locator("#card")).to_contain_text("no plan")
        assert (opened.faults, opened.requests) == ([], [])


def test_large_images_limit_patches_and_the_page_says_so(tiny, network_of, inputs_of, browser, tmp_path, stages):
    network = network_of(tiny("chain"), (3, 100, 120))
    inputs = inputs_of(network, evidence_kernels=2, evidence_images=1)
    path = write_run_evidence(inputs, stages.explain(inputs), None, tmp_path / "evidence.html")
    with browser.open(path) as opened:
        tab = opened.page
        assert "Patches are shown for 2 kernels per layer" in tab.locator("#kernels-intro").inner_text()
        assert "Limited to 2 kernels per layer" in tab.locator("#about-body").inner_text()
        carried = data_of(path)
        site = next(site for site in carried["sites"] if site["name"] == "conv1")
        having = [kernel for kernel, patches in enumerate(site["patches"]) if patches is not None]
        scores = site["scores"][0]
        assert {scores.index(max(scores)), scores.index(min(scores))} <= set(having)
        lacking = next(kernel for kernel in range(8) if kernel not in having)
        tab.goto(f"{path.resolve().as_uri()}#kernel-conv1-{lacking}")
        expect(tab.locator("#card")).to_contain_text("--evidence-kernels")
        tab.goto(f"{path.resolve().as_uri()}#kernel-conv1-{having[0]}")
        expect(tab.locator("#card .patches li")).to_have_count(len(site["patches"][having[0]]))
        assert opened.faults == []


def test_kernels_in_trees_have_patches_whatever_the_limit(tiny, network_of, noise_images):
    network = network_of(tiny("chain"))
    always = {site.node: site for site in _sites(network, noise_images, None)}
    node = next(name for name, site in always.items() if site.name == "conv2")
    found = _sites(network, noise_images, GatheringSettings(1, True, {node: frozenset((3, 5, 9))}))
    assert {site.name: sorted(site.patches) for site in found}["conv2"] == [0, 3, 5, 9]


def _sites(network, noise_images, settings):
    task = RankingTask(network, noise_images(12))
    return gather_kernel_evidence(task, None, settings or GatheringSettings()).sites


def test_a_network_that_cannot_be_traced_still_gets_its_page(network_of, inputs_of, browser, tmp_path, stages):
    class Untraceable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 4)

        def forward(self, x):
            x = self.conv(x)
            if float(x.mean()) > 1e9:
                x = x + 1
            return self.head(x.mean((2, 3)))

    inputs = inputs_of(network_of(Untraceable()))
    path = write_run_evidence(inputs, stages.explain(inputs), None, tmp_path / "evidence.html")
    with browser.open(path) as opened:
        said = opened.page.inner_text("main")
        assert said.count("cannot be traced") >= 3 or said.count("trace") >= 3, said
        assert (opened.faults, opened.requests) == ([], [])


def test_a_plan_or_scores_of_another_network_are_not_shown(network, tiny, network_of, inputs_of, tmp_path, stages):
    other = inputs_of(network_of(tiny("chain")))
    scores = stages.explain(other)
    chosen = stages.plan(other, scores)
    assert verdicts_of(network[0], chosen) is None
    path = write_run_evidence(inputs_of(*network, evidence_images=1), scores, chosen, tmp_path / "evidence.html")
    assert path.read_text().count("another network") == 2
    assert data_of(path)["methods"][0]["role"] == "beside"


@pytest.mark.slow
def test_the_page_of_resnet20_is_below_20_megabytes(shared, shake, inputs_of, noise_images, tmp_path, stages):
    source = shared / "models" / "resnet_cifar.py"
    specification = importlib.util.spec_from_file_location("resnet_cifar", source)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    names = tuple(f"class {index}" for index in range(10))
    preprocessing = Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3)
    network = Network(shake(module.resnet20()), preprocessing, names, Source("resnet20"))
    images = noise_images(64, (3, 32, 32), 10)  # noise: nothing that could be compressed
    path = write_run_evidence(
        inputs_of(network, images, evidence_images=2),
        stages.explain(inputs_of(network, images)),
        None,
        tmp_path / "e.html",
    )
    carried = data_of(path)
    assert sum(site["kernels"] for site in carried["sites"] if site["layer"]) == 698
    assert all(patches is not None for site in carried["sites"] for patches in site["patches"])
    atlas, pictures = len(json.dumps(carried["atlas"])), len(json.dumps(carried["pictures"]))
    assert path.stat().st_size + atlas * (1000 / 64 - 1) + pictures * 6 < 20e6  # with 1000 images and 14 trees


def test_a_sheet_gives_its_tiles_back():
    tiles = [Image.new("RGB", (5, 3), (index, 2 * index, 255 - index)) for index in range(23)]
    sheet = make_sheet(tiles, 6, 4)
    import base64
    import io

    with Image.open(io.BytesIO(base64.b64decode(sheet.source.partition(",")[2]))) as whole:
        for index in range(23):
            corner = (index % sheet.columns * 6, index // sheet.columns * 4)
            assert whole.getpixel(corner) == (index, 2 * index, 255 - index)
