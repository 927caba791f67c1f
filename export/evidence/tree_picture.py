"""A picture of an evidence tree: layer by layer the kernels behind a decision, where they are strongest, and what excites
them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.files import replacing
from ...explain.evidence.heatmap import gradient_picture, overlay, pixels_picture
from ...explain.evidence.regions import Box
from ...explain.evidence.tree import Evidence, EvidenceTree

CELL_INCHES = 1.25
GAP_INCHES = 0.55
ROW_GAP_INCHES = 0.3


@dataclass(frozen=True)
class _Placed:
    """A piece of evidence, its column (its depth, from 1), its row, and its parent's row."""

    evidence: Evidence
    column: int
    row: float
    parent: float


def draw_evidence(tree: EvidenceTree, path: Path) -> None:
    """Write the tree as a picture (the suffix gives the format: png, svg, pdf).

    From left to right: the image and its guided gradient, then the layers from the last to the first. Each piece of evidence is
    two panels: its activation map over the image with the receptive field of its strongest position, and the guided gradient in
    that box. Lines lead from a decision to its evidence; a thicker line is a larger share.
    """
    drawing = _Drawing(tree)
    drawing.add_image()
    for one in drawing.placed:
        drawing.add_evidence(one)
    drawing.add_headings()
    with replacing(path) as temporary:
        drawing.figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", metadata=_without_date(path))


class _Drawing:
    """A figure with a grid of panels, two for each piece of evidence."""

    def __init__(self, tree: EvidenceTree) -> None:
        from matplotlib.figure import Figure

        self.tree, self.placed = tree, list(_place(tree))
        self.height = max([1, *(1 + one.row for one in self.placed)])
        columns = 1 + len(tree.layers)
        self.size = (
            columns * 2 * CELL_INCHES + (columns - 1) * GAP_INCHES + 0.3,
            self.height * (CELL_INCHES + ROW_GAP_INCHES) + 0.9,
        )
        self.figure = Figure(figsize=self.size, dpi=110)
        self.picture = pixels_picture(tree.pixels)

    def add_image(self) -> None:
        """The image and its guided gradient."""
        tree, centre = self.tree, (self.height - 1) / 2
        root = self._panel(0, 0, centre)
        _show(root, self.picture)
        root.set_title(
            f"{tree.picture}\npredicted {tree.predicted} ({100 * tree.probability:.0f}%)",
            fontsize=7,
            loc="left",
            parse_math=False,
        )
        _show(self._panel(0, 1, centre), gradient_picture(tree.guided))

    def add_evidence(self, one: _Placed) -> None:
        """The two panels of a piece of evidence, and the line from its parent."""
        from matplotlib.lines import Line2D

        found, box = one.evidence, one.evidence.box
        mapped = self._panel(one.column, 0, one.row)
        _show(mapped, overlay(found.activation_map.clamp(min=0), self.picture))
        _outline(mapped, box)
        same = (
            f" = {', '.join(map(str, found.merged[:3]))}{'…' if len(found.merged) > 3 else ''}" if found.merged else ""
        )
        mapped.set_title(f"kernel {found.kernel}{same}: {100 * found.share:.0f}%", fontsize=7, loc="left", pad=2)
        inside = found.guided[:, box.top : box.bottom, box.left : box.right]
        _show(self._panel(one.column, 1, one.row), gradient_picture(inside))
        start = self._edge(one.column - 1, one.parent, right=True)
        end = self._edge(one.column, one.row, right=False)
        width = 0.4 + 4 * max(0.0, found.share)
        self.figure.add_artist(Line2D((start[0], end[0]), (start[1], end[1]), linewidth=width, color="#888888"))

    def add_headings(self) -> None:
        """The decision and the names of the layers."""
        tree = self.tree
        self.figure.text(
            0.15 / self.size[0],
            1 - 0.22 / self.size[1],
            f"Evidence for {tree.decision} ({tree.value:.2f})",
            fontsize=9,
            parse_math=False,
        )
        for column, layer in enumerate(tree.layers, 1):
            at = self._edge(column, 0, right=False)[0]
            self.figure.text(at, 1 - 0.42 / self.size[1], layer, fontsize=8, weight="bold", parse_math=False)

    def _panel(self, column: int, side: int, row: float) -> Any:
        width, height = self.size
        left = 0.15 + column * (2 * CELL_INCHES + GAP_INCHES) + side * CELL_INCHES
        top = height - 0.75 - row * (CELL_INCHES + ROW_GAP_INCHES)
        axes = self.figure.add_axes(
            (left / width, (top - CELL_INCHES) / height, 0.95 * CELL_INCHES / width, 0.95 * CELL_INCHES / height)
        )
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def _edge(self, column: int, row: float, *, right: bool) -> tuple[float, float]:
        width, height = self.size
        left = 0.15 + column * (2 * CELL_INCHES + GAP_INCHES) + (1.97 * CELL_INCHES if right else 0)
        return left / width, (height - 0.75 - row * (CELL_INCHES + ROW_GAP_INCHES) - CELL_INCHES / 2) / height


def _without_date(path: Path) -> dict[str, Any] | None:
    return {"Date": None} if path.suffix == ".svg" else None


def _place(tree: EvidenceTree) -> Iterator[_Placed]:
    """Columns by depth; the pieces of a column are centred one below the other."""
    by_depth: dict[int, list[tuple[Evidence, int]]] = {}
    parents = {id(child): found for _, found in tree.walk() for child in found.support}
    rank: dict[int, int] = {}
    for depth, found in tree.walk():
        column = by_depth.setdefault(depth, [])
        rank[id(found)] = len(column)
        column.append((found, depth))
    tallest = max([1, *(len(column) for column in by_depth.values())])

    def row(found: Evidence, depth: int) -> float:
        return rank[id(found)] + (tallest - len(by_depth[depth])) / 2

    for depth, column in by_depth.items():
        for found, _ in column:
            above = parents.get(id(found))
            yield _Placed(
                found, depth + 1, row(found, depth), (tallest - 1) / 2 if above is None else row(above, depth - 1)
            )


def _show(axes: Any, picture: Image.Image) -> None:
    axes.imshow(picture, interpolation="nearest")


def _outline(axes: Any, box: Box) -> None:
    from matplotlib.patches import Rectangle

    corner, width, height = (box.left - 0.5, box.top - 0.5), box.right - box.left, box.bottom - box.top
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#00d5ff", linewidth=1))
