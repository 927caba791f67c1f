"""Pictures of class-specific clusters: the correspondence matrix as a heat map, and Grad-CAM by clusters side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ...common.files import replacing
from ...explain.evidence.heatmap import overlay, pixels_picture
from ...explain.picnn.cluster_maps import ClusterMaps
from ...explain.picnn.membership import Membership

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_NAMES = 60
LONGEST_NAME = 24
SMALLEST_SIDE = 128


def draw_membership(membership: Membership, path: Path) -> None:
    """Write P as a heat map: one row per class, one column per filter, sorted by the class that the filter belongs to most."""
    from matplotlib.figure import Figure

    matrix = membership.probabilities.detach().cpu()
    own = membership.classes_of_filters.cpu()
    order = sorted(range(matrix.shape[1]), key=lambda index: (int(own[index]), -float(matrix[:, index].max())))
    classes, filters = matrix.shape
    figure = Figure(figsize=(min(16, max(6, 0.11 * filters + 2.5)), min(12, max(2.2, 0.24 * classes + 1.3))), dpi=110)
    axes = figure.subplots()
    drawn = axes.imshow(matrix[:, order], cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xlabel(f"filters of {membership.target}, sorted by class", parse_math=False)
    if classes <= MOST_NAMES:
        axes.set_yticks(range(classes), [_short(name) for name in membership.class_names], fontsize=8, parse_math=False)
    else:
        axes.set_ylabel("classes")
    figure.colorbar(drawn, ax=axes, label="membership", fraction=0.05, pad=0.02)
    figure.tight_layout()
    _write(figure, path)


def draw_cluster_maps(
    maps: ClusterMaps, pixels: Tensor, class_names: Sequence[str], membership: Membership, path: Path
) -> None:
    """Write one row per image: the picture, and Grad-CAM by all filters, the class's cluster and its complement.

    All maps of a row share one scale, so that a weak cluster looks weak.

    Args:
        pixels: uint8 or float in [0, 1], ``[n, C, H, W]``.
    """
    from matplotlib.figure import Figure

    sizes = torch.bincount(membership.classes_of_filters.cpu(), minlength=len(class_names)).tolist()
    titles = ("", "all filters", "the class's cluster", "all but the cluster")
    figure = Figure(figsize=(8.4, 2.05 * len(pixels) + 0.4), dpi=110)
    grid = figure.subplots(len(pixels), 4, squeeze=False)
    for row, (axes, picture) in enumerate(zip(grid, pixels, strict=True)):
        shown = _enlarged(pixels_picture(picture))
        label = int(maps.classes[row])
        largest = (
            max(float(maps.whole[row].max()), float(maps.cluster[row].max()), float(maps.complement[row].max())) or 1.0
        )
        for column, (place, title) in enumerate(zip(axes, titles, strict=True)):
            place.set_xticks([])
            place.set_yticks([])
            if row == 0 and title:
                place.set_title(title, fontsize=9)
            if column == 0:
                place.imshow(shown, interpolation="nearest")
                place.set_ylabel(f"{_short(class_names[label])}\n{sizes[label]} filters", fontsize=8, parse_math=False)
                continue
            part = (maps.whole, maps.cluster, maps.complement)[column - 1][row]
            place.imshow(overlay(part, shown, scale=largest), interpolation="nearest")
    figure.tight_layout()
    _write(figure, path)


def _enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge a small picture, so that a map over it looks smooth."""
    factor = max(1, SMALLEST_SIDE // min(picture.size))
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _write(figure: "Figure", path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png")
