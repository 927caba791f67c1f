"""What every place of a feature map sees of the image, from a few places where rows and columns decide apart."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from .dependence import PassingNetwork
from .regions import Box, receptive_fields

Interval = tuple[int, int]


@dataclass(frozen=True)
class FieldMap:
    """The receptive fields of a map's places: ``rows[r]`` is (top, bottom), ``columns[c]`` (left, right), in pixels; the second
    of each is the first row or column behind the field."""

    rows: tuple[Interval, ...]
    columns: tuple[Interval, ...]

    def box(self, row: int, column: int) -> Box:
        """The field of one place."""
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return Box(left, top, right, bottom)


class FieldMaps:
    """The fields of a traced network's maps, each map looked at once however many images there are.

    ``example``: of an image only the shape counts, ``[n, C, H, W]``.
    """

    def __init__(self, view: fx.GraphModule, example: Tensor) -> None:
        self.view, self.example = view, example
        self._known: dict[fx.Node, FieldMap | None] = {}

    def boxes(self, node: fx.Node, height: int, width: int, places: Sequence[tuple[int, int]]) -> list[Box]:
        """The boxes of places (row, column) of a node's map of ``height`` x ``width``.

        Raises:
            InputError: what :func:`~.regions.receptive_fields` raises.
        """
        if node not in self._known:
            self._known[node] = field_map(self.view, node, self.example, (height, width), self._passing)
        fields = self._known[node]
        if fields is None:
            return receptive_fields(self.view, node, places, self.example, self._passing)
        return [fields.box(row, column) for row, column in places]

    @functools.cached_property
    def _passing(self) -> PassingNetwork:
        return PassingNetwork(self.view)


def field_map(
    view: fx.GraphModule, node: fx.Node, example: Tensor, size: tuple[int, int], passing: PassingNetwork | None = None
) -> FieldMap | None:
    """The fields of all places of a map of ``size`` (height, width), or None where they must be asked for one by one.

    Convolutions and pools see intervals of rows and columns that move by the same step from place to place, cut at the image's
    edge. So the two outermost rows and columns at either side tell the others; two places inside, not used for that, must
    agree with :func:`~.regions.receptive_fields`, else the map has another kind of fields (a transposition, attention).

    Raises:
        InputError: what ``receptive_fields`` raises.
    """
    height, width = size
    rows, columns = _outermost(height), _outermost(width)
    count = max(len(rows), len(columns))
    asked = list(zip(_filled(rows, count), _filled(columns, count), strict=True))
    inside = [(height // 2, width // 3), (height // 3, width // 2)]
    boxes = dict(zip([*asked, *inside], receptive_fields(view, node, [*asked, *inside], example, passing), strict=True))
    found = FieldMap(
        _between(height, {row: (boxes[row, column].top, boxes[row, column].bottom) for row, column in asked}),
        _between(width, {column: (boxes[row, column].left, boxes[row, column].right) for row, column in asked}),
    )
    return found if all(found.box(*place) == box for place, box in boxes.items()) else None


def _outermost(size: int) -> list[int]:
    return sorted({0, min(1, size - 1), max(0, size - 2), size - 1})


def _filled(values: list[int], count: int) -> list[int]:
    return values + [values[-1]] * (count - len(values))


def _between(size: int, known: dict[int, Interval]) -> tuple[Interval, ...]:
    """Intervals of all places from those at both ends: they move by a fixed step where the image's edge does not cut them."""
    first, last = known[0], known[size - 1]
    before, after = known[max(0, size - 2)], known[min(1, size - 1)]
    start_step = last[0] - before[0] if before[0] > first[0] else last[0] - first[0]
    end_step = after[1] - first[1] if after[1] < last[1] else last[1] - first[1]
    return tuple(
        (max(first[0], last[0] - start_step * (size - 1 - place)), min(last[1], first[1] + end_step * place))
        for place in range(size)
    )
