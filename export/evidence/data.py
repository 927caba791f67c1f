"""The data of the evidence page as plain values: JSON, with pictures as data URLs and maps as bytes in base64."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...explain.agic.neighbours import Edge, Neighbours
from ...explain.evidence.heatmap import gradient_picture
from ...explain.evidence.kernel_cards import KernelEvidence, SiteEvidence
from ...explain.evidence.patches import Patch
from ...explain.evidence.tree import Evidence, EvidenceTree
from ...explain.picnn.cluster_maps import ClusterEvidence
from ...explain.scores import KernelScores
from ...network.images.images import Images
from .sheets import Sheet, drawable, make_sheet, picture_of, shrunk

WHOLE_SIDE = 96  # images up to this many pixels a side are kept whole, larger ones are scaled down
TREE_SIDE = 128
PATCH_SIDE = 48  # size of patches cut out of larger images
FULL_PROFILE = 40  # with more classes, a profile lists only the strongest
STRONGEST_CLASSES = 12


@dataclass(frozen=True)
class Verdicts:
    """For each kernel of a layer: whether the plan keeps it, why, and the score of its unit (None if it has none)."""

    stays: tuple[bool, ...]
    why: tuple[str, ...]
    scores: tuple[float | None, ...]
    decided_by: str


@dataclass(frozen=True)
class ExplainedPicture:
    """An evidence tree, and the class of the picture's label; empty if it has no label."""

    tree: EvidenceTree
    label: str = ""


@dataclass(frozen=True)
class PageContent:
    """Everything on one page.

    ``calibration`` are the images that patches refer to by number; None if no kernels are shown. ``verdicts`` are by layer,
    None without a plan. ``nodes`` names, for the layers of evidence trees, the node that outputs their map.
    """

    model: str
    class_names: tuple[str, ...]
    kernels: KernelEvidence | None
    calibration: Images | None
    pictures: tuple[ExplainedPicture, ...]
    nodes: Mapping[str, str]
    clusters: ClusterEvidence | None
    verdicts: Mapping[str, Verdicts] | None
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def page_data(content: PageContent) -> dict[str, Any]:
    """The content as JSON values."""
    kernels, clusters = content.kernels, content.clusters
    sites = kernels.sites if kernels else ()
    site_of_node = {site.node: site.name for site in sites}
    kept = _Kept(content.calibration, sites)
    whys: dict[str, int] = {}
    return {
        "classes": list(content.class_names),
        "labelled": content.calibration is None or content.calibration.labelled,
        "images": 0 if content.calibration is None else len(content.calibration),
        "planned": content.verdicts is not None,
        "patched": kernels.patched if kernels else None,
        "methods": _methods(kernels) if kernels else [],
        "sites": [_site(site, content, kept, whys) for site in sites],
        "whys": list(whys),  # filled by the previous line
        "neighbours": None if kernels is None or kernels.neighbours is None else _about(kernels.neighbours),
        "atlas": kept.atlas(),
        "pictures": [_picture(one, content.nodes, site_of_node) for one in content.pictures],
        "clusters": None if clusters is None else _clusters(clusters, site_of_node),
        "missing": {**content.missing, **(kernels.missing if kernels else {})},
        "colours": {name: _colours(name) for name in ("inferno", "viridis")},
    }


def _methods(kernels: KernelEvidence) -> list[dict[str, Any]]:
    """The rankings in the order of the cards: the one that was used, its members, those for comparison."""
    ranking = [(kernels.ranking, "the ranking")] if kernels.ranking else []
    rows = [
        *ranking,
        *((scores, "in the ranking") for scores in kernels.members),
        *((scores, "beside") for scores in kernels.beside),
    ]
    return [
        {"name": scores.method, "unit": scores.unit, "role": role, "images": scores.details.get("images")}
        for scores, role in rows
    ]


def _all_scores(kernels: KernelEvidence | None) -> list[KernelScores]:
    if kernels is None:
        return []
    return [*([kernels.ranking] if kernels.ranking else []), *kernels.members, *kernels.beside]


def _site(site: SiteEvidence, content: PageContent, kept: "_Kept", whys: dict[str, int]) -> dict[str, Any]:
    kernels, activity = content.kernels, site.activity
    assert kernels is not None
    verdicts = (content.verdicts or {}).get(site.layer)
    found: dict[str, Any] = {
        "name": site.name,
        "kind": site.kind,
        "layer": site.layer,
        "kernels": site.kernels,
        "isClasses": site.classes,
        "map": [activity.height, activity.width],
        "scores": [
            None if site.layer not in scores.layers else _numbers(scores.layers[site.layer])
            for scores in _all_scores(kernels)
        ],
        "average": _numbers(activity.average),
        "active": _numbers(activity.active),
        "patches": [kept.patches(site.patches.get(kernel)) for kernel in range(site.kernels)],
        "sheet": kept.sheet(site),
        "fedBy": [list(one) if one else None for one in site.fed_by],
        **_profile(activity.per_class),
    }
    if verdicts is not None:
        found["verdicts"] = {
            "stays": [int(stays) for stays in verdicts.stays],
            "why": [whys.setdefault(why, len(whys)) for why in verdicts.why],
            "scores": [None if score is None else _short(score) for score in verdicts.scores],
            "by": verdicts.decided_by,
        }
    if kernels.neighbours is not None:
        found["in"] = _edges(kernels.neighbours.incoming.get(site.name), kernels)
        found["out"] = _edges(kernels.neighbours.outgoing.get(site.name), kernels)
    return found


def _profile(per_class: Tensor) -> dict[str, Any]:
    """Mean activations by class, ``[classes, C]``: all of them, or the strongest as pairs of class and value."""
    if len(per_class) <= FULL_PROFILE:
        return {"profile": [_numbers(row) for row in per_class.T]}
    values, classes = per_class.T.topk(STRONGEST_CLASSES, dim=1)
    return {
        "strongest": [
            [[label, _short(value)] for label, value in zip(*row, strict=True)]
            for row in zip(classes.tolist(), values.tolist(), strict=True)
        ]
    }


def _edges(edges: Sequence[tuple[Edge, ...]] | None, kernels: KernelEvidence) -> list[list[list[float | None]]] | None:
    number = {site.name: index for index, site in enumerate(kernels.sites)}
    if edges is None:
        return None
    return [
        [
            [number[edge.site], edge.kernel, _short(edge.share), _short(edge.strength)]
            for edge in own
            if edge.site in number
        ]
        for own in edges
    ]


def _about(neighbours: Neighbours) -> dict[str, Any]:
    return {"images": neighbours.images, "explainers": neighbours.explainers, "unlinked": neighbours.unlinked}


class _Kept:
    """The images that patches come from, each once, and patches cut out of images that are too large to be kept whole."""

    def __init__(self, images: Images | None, sites: Sequence[SiteEvidence]) -> None:
        self._images = images
        used = {patch.image for site in sites for patches in site.patches.values() for patch in patches}
        self._number = {image: index for index, image in enumerate(sorted(used))}
        self._whole = images is None or max(images.preprocessing.input_shape[1:]) <= WHOLE_SIDE

    def patches(self, patches: Sequence[Patch] | None) -> list[list[float | None]] | None:
        """``[image, left, top, right, bottom, value]`` each; None if the page shows none of this kernel."""
        if patches is None:
            return None
        return [
            [self._number[one.image], one.box.left, one.box.top, one.box.right, one.box.bottom, _short(one.value)]
            for one in patches
        ]

    def sheet(self, site: SiteEvidence) -> dict[str, Any] | None:
        """The patches of a site in the order of its kernels, for large images."""
        patches = [patch for kernel in sorted(site.patches) for patch in site.patches[kernel]]
        if self._whole or self._images is None or not patches:
            return None
        tiles = [self._cut(patch) for patch in patches]
        starts, count = {}, 0
        for kernel in sorted(site.patches):
            starts[kernel], count = count, count + len(site.patches[kernel])
        sizes = [list(tile.size) for tile in tiles]
        return {**make_sheet(tiles, PATCH_SIDE, PATCH_SIDE).to_json(), "starts": starts, "sizes": sizes}

    def _cut(self, patch: Patch) -> Image.Image:
        assert self._images is not None
        pixels = self._images.pixels(torch.tensor([patch.image]))[0]
        box = patch.box
        return picture_of(pixels[:, box.top : box.bottom, box.left : box.right], PATCH_SIDE)

    def atlas(self) -> dict[str, Any] | None:
        if self._images is None or not self._number:
            return None
        height, width = self._images.preprocessing.input_shape[1:]
        tiles = [picture_of(self._images.pixels(torch.tensor([image]))[0], WHOLE_SIDE) for image in self._number]
        sheet = make_sheet(tiles, *tiles[0].size)
        labels = [int(self._images.labels[image]) for image in self._number]
        return {**sheet.to_json(), "image": [width, height], "labels": labels}


def _picture(one: ExplainedPicture, nodes: Mapping[str, str], site_of_node: Mapping[str, str]) -> dict[str, Any]:
    tree = one.tree
    height, width = tree.pixels.shape[1:]
    scale = min(1.0, TREE_SIDE / max(height, width))
    side = (max(1, round(width * scale)), max(1, round(height * scale)))
    tiles = [picture_of(tree.pixels, TREE_SIDE), shrunk(_gradient(tree.guided), TREE_SIDE)]

    def node(found: Evidence) -> dict[str, Any]:
        box = found.box
        tiles.append(shrunk(_gradient(found.guided[:, box.top : box.bottom, box.left : box.right]), max(side)))
        shown = found.activation_map.clamp(min=0)
        most = float(shown.max())
        return {
            "layer": found.layer,
            "site": site_of_node.get(nodes.get(found.layer, ""), ""),
            "kernel": found.kernel,
            "box": [box.left, box.top, box.right, box.bottom],
            "place": [found.row, found.column],
            "value": _short(found.value),
            "alpha": _short(found.alpha),
            "share": _short(found.share),
            "importance": _short(found.importance),
            "merged": list(found.merged),
            "map": _bytes(shown / most if most > 0 else shown),
            "size": list(shown.shape),
            "most": _short(most),
            "tile": len(tiles) - 1,
            "tileSize": list(tiles[-1].size),
            "support": [node(child) for child in found.support],
        }

    evidence = [node(child) for child in tree.evidence]
    sheet: Sheet = make_sheet(tiles, *side)
    return {
        "name": tree.picture,
        "label": one.label,
        "predicted": tree.predicted,
        "probability": _short(tree.probability),
        "decision": tree.decision,
        "value": _short(tree.value),
        "image": [width, height],
        "sheet": sheet.to_json(),
        "evidence": evidence,
        "occlusions": [
            {
                "why": occlusion.why,
                "class": tree.class_names[occlusion.effect.label],
                "before": _short(occlusion.effect.probability_before),
                "after": _short(occlusion.effect.probability_after),
                "predicted": tree.class_names[occlusion.effect.predicted_after],
            }
            for occlusion in tree.occlusions
        ],
    }


def _gradient(gradient: Tensor) -> Image.Image:
    return gradient_picture(drawable(gradient))


def _clusters(clusters: ClusterEvidence, site_of_node: Mapping[str, str]) -> dict[str, Any]:
    membership, maps = clusters.membership, clusters.maps
    found: dict[str, Any] = {
        "target": membership.target,
        "site": site_of_node.get(clusters.node, ""),
        "masks": membership.masks,
        "trained": clusters.trained,
        "images": membership.details.get("images"),
        "filters": membership.probabilities.shape[1],
        "classes": list(membership.class_names),
        "of": membership.classes_of_filters.tolist(),
        "probabilities": _bytes(membership.probabilities),
        "maps": None,
    }
    if maps is not None:
        parts = [getattr(maps, name) for name in ("whole", "cluster", "complement")]
        rows = []
        for index, label in enumerate(maps.classes.tolist()):
            own = [part[index] for part in parts]
            most = max(float(part.max()) for part in own) or 1.0
            rows.append({"class": label, "most": _short(most), "maps": [_bytes(part / most) for part in own]})
        found["maps"] = {"size": list(maps.whole.shape[1:]), "rows": rows}
    return found


def _bytes(values: Tensor) -> str:
    """Values in [0, 1] as one byte each, in base64."""
    levels = (values.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return base64.b64encode(levels.contiguous().numpy().tobytes()).decode("ascii")


def _colours(name: str) -> str:
    """A matplotlib colour map as 256 RGB triples, in base64."""
    from matplotlib import colormaps

    table = (colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return base64.b64encode(table.tobytes()).decode("ascii")


def _numbers(values: Tensor) -> list[float | None]:
    return [_short(value) for value in values.tolist()]


def _short(value: float) -> float | None:
    """Four significant digits; None for NaN and infinity, which JSON cannot represent."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
