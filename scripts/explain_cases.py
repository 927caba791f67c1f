"""Makes the pictures and figures of docs/methods/gap.md. Run again: python scripts/explain_cases.py

A validation image of the embedded digits that the network gets wrong, and one that an attack makes it get wrong.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.common.environment import seed_everything
from secateur.common.files import write_json
from secateur.explain.evidence.heatmap import pixels_picture
from secateur.explain.evidence.occlusion import measure_occlusion, occlude
from secateur.explain.evidence.regions import strong_pixels
from secateur.explain.evidence.tree import MOST, EvidenceTree, PictureTask, explain_picture
from secateur.explain.faithfulness.adversarial import DescentSettings, projected_gradient_descent
from secateur.explain.gap.decomposition import Decomposer
from secateur.explain.gap.levels import DecompositionSettings
from secateur.export.evidence.tree_picture import draw_evidence
from secateur.network.graph.execution import run_graph
from secateur.network.graph.feature_points import find_stages
from secateur.network.graph.trace import trace
from secateur.network.images.load import load_images
from secateur.network.load import load_model
from secateur.network.network import Network

OUT = Path(__file__).resolve().parent.parent / "docs" / "methods"
WRONG, ATTACKED = 300, 17  # indices into the validation images
ATTACK = DescentSettings(epsilon=16, step=4)


def main() -> None:
    seed_everything(0)
    torch.use_deterministic_algorithms(True)
    network = load_model("digits")
    images = load_images("digits", network.preprocessing).validation
    normalise = network.preprocessing.normalise
    pixels = images.pixels(torch.tensor([WRONG, ATTACKED])).float()
    pixels = pixels / 255 if float(pixels.max()) > 1 else pixels
    labels = images.labels[[WRONG, ATTACKED]]
    wrong, clean = normalise(pixels)
    cases = {
        "wrong": failure(network, wrong, int(labels[0])),
        "attacked": attack(network, pixels[1:], clean, labels[1:]),
    }
    write_json(OUT / "gap-cases.json", cases)


def failure(network: Network, image: Tensor, label: int) -> dict[str, Any]:
    """What speaks for the wrong class, what covering each of its regions does, and what speaks for the right one."""
    decomposer = Decomposer(network, DecompositionSettings(most=MOST))
    tree = explain_picture(decomposer, PictureTask(f"an {label}", image))
    draw_evidence(tree, OUT / "gap-failure.png")
    right = explain_picture(decomposer, PictureTask(f"an {label}", image, label=label))
    effects = []
    for found in tree.evidence:
        mask = strong_pixels(found.activation_map, *image.shape[1:])
        covered = occlude(image, mask.unsqueeze(0), "mean", network.preprocessing)[0]
        effect = measure_occlusion(network, image, mask, label=label)
        with torch.no_grad():
            probabilities = network.logits(covered.unsqueeze(0)).softmax(1)[0]
        effects.append({
            "kernel": found.kernel, "share": found.share, "covered": effect.covered,
            "predicted_after": network.class_names[effect.predicted_after],
            "right_class_before": effect.probability_before, "right_class_after": float(probabilities[label]),
        })  # fmt: skip
    return {
        "image": WRONG, "label": label, "predicted": tree.predicted, "probability": tree.probability,
        "evidence": _first(tree), "evidence_for_the_right_class": _first(right), "covered": effects,
    }  # fmt: skip


def attack(network: Network, pixels: Tensor, clean: Tensor, labels: Tensor) -> dict[str, Any]:
    """The peaks of the kernels that speak for the true and for the wrong class, before and after the attack."""
    found = projected_gradient_descent(network, pixels, labels, ATTACK)
    attacked = network.preprocessing.normalise(found.pixels)[0]
    decomposer = Decomposer(network, DecompositionSettings(most=MOST))
    before = explain_picture(decomposer, PictureTask(f"a {int(labels[0])}", clean))
    after = explain_picture(decomposer, PictureTask("attacked", attacked))
    draw_evidence(before, OUT / "gap-before-attack.png")
    draw_evidence(after, OUT / "gap-after-attack.png")
    both = pixels_picture(torch.cat([pixels[0], found.pixels[0]], 2))
    both.resize((both.width * 16, both.height * 16), 0).save(OUT / "gap-attack.png")
    view = trace(network.module, network.example())
    last = find_stages(view, network.example())[-1]
    with torch.no_grad():
        maps = run_graph(view, torch.stack([clean, attacked]), [last.node])[last.node].amax((2, 3))
    peaks = [
        {"speaks_for": tree.predicted, "kernel": one.kernel, "peak_before": float(maps[0, one.kernel]),
         "peak_after": float(maps[1, one.kernel])}
        for tree in (before, after) for one in tree.evidence
    ]  # fmt: skip
    return {
        "image": ATTACKED, "label": int(labels[0]), "epsilon": ATTACK.epsilon, "steps": ATTACK.steps,
        "largest_change": float(255 * (found.pixels - pixels).abs().max()),
        "before": {"predicted": before.predicted, "probability": before.probability, "evidence": _first(before)},
        "after": {"predicted": after.predicted, "probability": after.probability, "evidence": _first(after)},
        "peaks": peaks,
    }  # fmt: skip


def _first(tree: EvidenceTree) -> list[dict[str, Any]]:
    return [{"layer": one.layer, "kernel": one.kernel, "share": one.share, "alpha": one.alpha} for one in tree.evidence]


if __name__ == "__main__":
    main()
