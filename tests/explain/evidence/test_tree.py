import json

import pytest
import torch

from secateur.common.errors import InputError
from secateur.explain.evidence.occlusion import measure_occlusion
from secateur.explain.evidence.regions import Box
from secateur.explain.evidence.tree import MOST, PictureTask, explain_picture
from secateur.explain.gap.decisions import ClassDecision, KernelDecision
from secateur.explain.gap.decomposition import Decomposer, decompose
from secateur.explain.gap.levels import DecompositionSettings
from secateur.network.images.load import load_images
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings


@pytest.fixture(scope="module")
def digit():
    network = load_model(ModelSettings())
    images = load_images("digits", network.preprocessing).test
    inputs, labels = next(images.batches(8))
    return network, inputs[3], int(labels[3])


def explain(network, task):
    return explain_picture(Decomposer(network, DecompositionSettings(most=MOST)), task)


def test_the_tree_is_the_decomposition_nested(digit):
    network, image, _ = digit
    tree = explain(network, PictureTask("three", image))
    levels = decompose(network, image.unsqueeze(0), None, DecompositionSettings(most=9)).levels
    assert tree.layers == tuple(level.point.name for level in levels)
    by_depth = {}
    for depth, found in tree.walk():
        by_depth.setdefault(depth, []).append(found)
    for depth, level in enumerate(levels):
        found = by_depth[depth]
        assert [(one.kernel, one.row, one.column) for one in found] == list(
            zip(level.kernel.tolist(), level.row.tolist(), level.column.tolist(), strict=True)
        )
        assert [one.share for one in found] == pytest.approx(level.share.tolist())
        if depth:
            parents = [above for above in by_depth[depth - 1] for _ in above.support]
            assert [by_depth[depth - 1].index(above) for above in parents] == level.parent.tolist()
    logits = network.logits(image.unsqueeze(0))[0].detach()
    assert tree.value == pytest.approx(float(logits.max()), rel=1e-5)
    assert tree.probability == pytest.approx(float(logits.softmax(0).max()), rel=1e-5)


def test_pixels_outside_the_box_do_not_change_the_evidence(digit):
    network, image, _ = digit
    tree = explain(network, PictureTask("three", image))
    seen = 0
    for _, one in tree.walk():
        box = one.box
        if (box.right - box.left) * (box.bottom - box.top) == image[0].numel():
            continue
        inside = torch.zeros_like(image, dtype=torch.bool)
        inside[:, box.top : box.bottom, box.left : box.right] = True
        other = torch.where(inside, image, torch.randn_like(image))
        place = (torch.tensor([value]) for value in (one.kernel, one.row, one.column))
        again = decompose(
            network, other.unsqueeze(0), KernelDecision(one.layer, *place), DecompositionSettings(layers=("stem",))
        )
        assert float(again.decision) == pytest.approx(one.value, abs=1e-5)
        assert not one.guided[~inside].any()
        seen += 1
    assert seen > 0


def test_regions_are_covered_and_the_decision_measured_again(digit):
    network, image, _ = digit
    box = Box(0, 0, 4, 8)
    tree = explain(network, PictureTask("three", image, occlude=(box,)))
    assert len(tree.occlusions) == len(tree.evidence) + 1
    asked = tree.occlusions[-1]
    covered = image.clone()
    covered[:, :, :4] = 0
    after = network.logits(torch.stack([image, covered])).softmax(1).detach()
    label = int(after[0].argmax())
    assert (asked.why, asked.effect.box) == ("requested", box)
    assert asked.effect.probability_after == pytest.approx(float(after[1, label]), abs=1e-6)
    assert asked.effect.logit_before == pytest.approx(measure_occlusion(network, image, box).logit_before)


def test_another_class_or_a_kernel_can_be_explained(digit):
    network, image, _ = digit
    other = explain(network, PictureTask("three", image, label=1))
    wanted = decompose(network, image.unsqueeze(0), ClassDecision(torch.tensor([1])))
    assert other.decision == "the logit of 1"
    assert other.value == pytest.approx(float(wanted.decision))
    kernel = explain(network, PictureTask("three", image, kernel=("block3", 5, 1, 2)))
    assert kernel.decision == "kernel 5 of block3 at row 1, column 2"
    assert kernel.layers == ("block1",)
    with pytest.raises(InputError, match=r"block3: kernel must be between 0 and 63 \(got 64\)"):
        explain(network, PictureTask("three", image, kernel=("block3", 64, 1, 2)))


def test_the_json_holds_every_piece_and_no_tensor(digit):
    network, image, _ = digit
    tree = explain(network, PictureTask("a <b>.png", image, occlude=(Box(1, 1, 3, 3),)))
    plain = json.loads(json.dumps(tree.to_json()))

    def count(children):
        return sum(1 + count(child["support"]) for child in children)

    assert count(plain["evidence"]) == len(list(tree.walk()))
    assert plain["picture"] == "a <b>.png"
    assert plain["occlusions"][-1]["box"] == [1, 1, 3, 3]
    assert set(plain["occlusions"][-1]) >= {
        "probability_before",
        "probability_after",
        "predicted_after",
        "covered",
        "fill",
    }
    assert plain["settings"] == {"top": 3, "most": 9, "overlap": 0.9, "threshold": 0.5, "baseline": "zero"}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_whole(digit, tmp_path, suffix):
    from PIL import Image

    from secateur.export.evidence.tree_picture import draw_evidence

    network, image, _ = digit
    tree = explain(network, PictureTask("a <b> & $c_{$", image))
    path = tmp_path / f"tree.{suffix}"
    draw_evidence(tree, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    if suffix == "png":
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 300
    else:
        text = path.read_text()
        assert all(f"kernel {one.kernel}" in text for one in tree.evidence)
