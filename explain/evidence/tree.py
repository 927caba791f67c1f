"""The evidence for a network's decision on one picture, as a tree of kernels: their positions, contributions and own
evidence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ...common.errors import InputError
from ...network.graph.feature_points import named_points
from ...network.images.pictures import Preprocessing
from ...network.network import Network
from ..gap.decisions import ClassDecision, KernelDecision
from ..gap.decomposition import Decomposer
from ..gap.levels import Decomposition, DecompositionSettings, Level
from .guided import ClassDecisions, KernelDecisions, guided_backpropagation
from .occlusion import OcclusionEffect, measure_occlusion
from .receptive_fields import FieldMaps
from .regions import Box, strong_pixels

MOST = 9  # pieces of evidence per layer of a picture


@dataclass(frozen=True)
class Evidence:
    """One kernel at one position that supports the decision above it.

    ``row`` and ``column`` are the position in its map (eq. 5), ``box`` its receptive field. ``value`` is the activation
    there, ``alpha`` the contribution (eq. 4) in the unit of the decision above per position, ``share`` is ``alpha`` over the
    sum of ``|alpha|`` of the layer, ``importance`` the product of the shares from the root. ``merged`` are kernels with nearly
    the same map. ``activation_map`` is A, ``[h, w]``; ``guided`` the guided gradient of the kernel at its position,
    ``[C, H, W]``.
    """

    layer: str
    kernel: int
    row: int
    column: int
    box: Box
    value: float
    alpha: float
    share: float
    importance: float
    merged: tuple[int, ...]
    support: tuple["Evidence", ...]
    activation_map: Tensor = field(repr=False)
    guided: Tensor = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without maps and gradients, which only the picture shows."""
        names = ("layer", "kernel", "row", "column", "value", "alpha", "share", "importance")
        return {
            **{name: getattr(self, name) for name in names},
            "box": _corners(self.box),
            "merged": list(self.merged),
            "support": [child.to_json() for child in self.support],
        }


@dataclass(frozen=True)
class Occlusion:
    """A region that was covered, the reason, and the effect on the class's score."""

    why: str
    effect: OcclusionEffect = field(repr=False)


@dataclass(frozen=True)
class EvidenceTree:
    """The evidence for a network's decision on one picture.

    ``decision`` names the explained decision, ``value`` is its score: a logit, or a kernel's activation. ``predicted`` is the
    predicted class and ``probability`` its softmax. ``pixels`` is the picture as given to the network, in [0, 1],
    ``[C, H, W]``; ``guided`` the guided gradient of the decision.
    """

    picture: str
    decision: str
    value: float
    predicted: str
    probability: float
    layers: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    occlusions: tuple[Occlusion, ...]
    class_names: tuple[str, ...]
    settings: Mapping[str, Any]
    pixels: Tensor = field(repr=False)
    guided: Tensor = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The tree as JSON; ``units`` lists the units of its figures."""
        return {
            "picture": self.picture,
            "decision": self.decision,
            "value": self.value,
            "predicted": self.predicted,
            "probability": self.probability,
            "layers": list(self.layers),
            "settings": dict(self.settings),
            "units": {
                "value": "logit, or activation",
                "alpha": "unit of the decision above, per place of the map",
                "share": "of the sum of |alpha| over the layer's kernels",
                "importance": "product of the shares from the root",
                "box": "pixels of the network's input: left, top, right, bottom",
            },
            "occlusions": [self._occlusion(occlusion) for occlusion in self.occlusions],
            "evidence": [child.to_json() for child in self.evidence],
        }

    def _occlusion(self, occlusion: Occlusion) -> dict[str, Any]:
        effect = occlusion.effect
        return {
            "why": occlusion.why,
            "box": _corners(effect.box),
            "covered": effect.covered,
            "fill": effect.fill,
            "class": self.class_names[effect.label],
            "logit_before": effect.logit_before,
            "logit_after": effect.logit_after,
            "probability_before": effect.probability_before,
            "probability_after": effect.probability_after,
            "predicted_before": self.class_names[effect.predicted_before],
            "predicted_after": self.class_names[effect.predicted_after],
        }

    def walk(self) -> Iterator[tuple[int, Evidence]]:
        """All evidence with its depth in depth-first order; depth 0 supports the decision itself."""
        pending = [(0, child) for child in reversed(self.evidence)]
        while pending:
            depth, found = pending.pop()
            yield depth, found
            pending += [(depth + 1, child) for child in reversed(found.support)]


@dataclass(frozen=True)
class PictureTask:
    """A picture to explain: its name, normalised pixels ``[C, H, W]``, and the decision.

    The decision is the logit of the class ``label``, or ``kernel`` (layer, kernel, row, column); by default the predicted
    class. ``occlude`` are further regions to cover besides those of the strongest evidence.
    """

    name: str
    image: Tensor
    label: int | None = None
    kernel: tuple[str, int, int, int] | None = None
    occlude: tuple[Box, ...] = ()


def explain_picture(decomposer: Decomposer, task: PictureTask, fields: FieldMaps | None = None) -> EvidenceTree:
    """The evidence tree of one picture; the decomposer holds the network and the settings.

    Args:
        fields: the receptive fields of the decomposer's view, to share between pictures.

    Raises:
        InputError: as :func:`decompose` and :func:`measure_occlusion`.
    """
    network, device = decomposer.network, decomposer.device
    view, inputs = decomposer.view, task.image.unsqueeze(0).to(device)
    with torch.no_grad():
        logits = network.logits(task.image.unsqueeze(0))[0]
    if not bool(torch.isfinite(logits).all()):
        raise InputError(
            f"{task.name}: the network's class scores are NaN or infinite. Check the picture and the weights."
        )
    names = network.class_names or tuple(f"class {index}" for index in range(len(logits)))
    predicted = int(logits.argmax())
    label = predicted if task.label is None else task.label
    zero = torch.tensor([0])
    if task.kernel is None:
        found = decomposer(inputs, ClassDecision(torch.tensor([label])))
        named, root = f"the logit of {names[label]}", ClassDecisions(zero, torch.tensor([label]))
        guided = guided_backpropagation(view, inputs, root)
    else:
        layer, *place = task.kernel
        kernel, row, column = (torch.tensor([value]) for value in place)
        found = decomposer(inputs, KernelDecision(layer, kernel, row, column))
        named = f"kernel {place[0]} of {layer} at row {place[1]}, column {place[2]}"
        node = named_points(view, decomposer.example, [layer])[0].node
        guided = guided_backpropagation(view, inputs, KernelDecisions(node, zero, kernel, row, column))
    evidence = _evidence(view, inputs, found, fields or FieldMaps(view, decomposer.example))
    return EvidenceTree(
        task.name,
        named,
        float(found.decision[0]),
        names[predicted],
        float(logits.softmax(0)[predicted]),
        tuple(level.point.name for level in found.levels),
        evidence,
        _occlusions(network, task, label, evidence, device),
        names,
        _described(decomposer.settings),
        _pixels(task.image, network.preprocessing),
        guided[0].cpu(),
    )


def _evidence(view: fx.GraphModule, inputs: Tensor, found: Decomposition, fields: FieldMaps) -> tuple[Evidence, ...]:
    """The levels of one image as a tree."""
    below: dict[int, list[Evidence]] = {}
    for level in reversed(found.levels):
        decisions = KernelDecisions(level.point.node, level.image, level.kernel, level.row, level.column)
        views = guided_backpropagation(view, inputs, decisions).cpu()
        boxes = _boxes(fields, level)
        above: dict[int, list[Evidence]] = {}
        for row in range(len(level)):
            one = Evidence(
                level.point.name,
                int(level.kernel[row]),
                int(level.row[row]),
                int(level.column[row]),
                boxes[row],
                float(level.value[row]),
                float(level.alpha[row]),
                float(level.share[row]),
                float(level.importance[row]),
                level.merged[row],
                tuple(below.get(row, ())),
                level.maps[row],
                views[row],
            )
            above.setdefault(int(level.parent[row]), []).append(one)
        below = above
    return tuple(below.get(0, ()))


def _boxes(fields: FieldMaps, level: Level) -> list[Box]:
    point, places = level.point, list(zip(level.row.tolist(), level.column.tolist(), strict=True))
    return fields.boxes(point.node, point.height, point.width, places)


def _occlusions(
    network: Network, task: PictureTask, label: int, evidence: tuple[Evidence, ...], device: str
) -> tuple[Occlusion, ...]:
    """The effect of covering the strong pixels of each of the first kernels, and each requested region."""
    regions: list[tuple[str, Box | Tensor]] = []
    for child in evidence:
        mask = strong_pixels(child.activation_map, *task.image.shape[1:])
        if bool(mask.any()):
            regions.append((f"where kernel {child.kernel} of {child.layer} is above half its maximum", mask))
    regions += [("requested", box) for box in task.occlude]
    return tuple(
        Occlusion(why, measure_occlusion(network, task.image, region, label=label, device=device))
        for why, region in regions
    )


def _pixels(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (image * std + mean).clamp(0, 1)


def _described(settings: DecompositionSettings) -> dict[str, Any]:
    selection = settings.selection
    return {
        "top": selection.top,
        "most": settings.most,
        "overlap": selection.overlap,
        "threshold": selection.threshold,
        "baseline": "mean" if settings.averages else "zero",
    }


def _corners(box: Box) -> list[int]:
    return [box.left, box.top, box.right, box.bottom]
