"""Receptive fields: the pixels of the image that a position of a feature map can depend on.

``receptive_fields`` finds them for single positions, by gradients in a copy of the network that passes every gradient.
``FieldMaps`` finds those of whole maps from a few positions, if rows and columns are independent.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...common.errors import InputError
from ...network.graph.execution import is_image_map, run_graph
from .passing_network import NoGradientError, PassingNetwork
from .regions import Box, supporting_region

Interval = tuple[int, int]


def receptive_fields(
    view: fx.GraphModule,
    node: fx.Node,
    places: Sequence[tuple[int, int]],
    example: Tensor,
    passing: PassingNetwork | None = None,
) -> list[Box]:
    """For each position, the smallest box with all pixels that it can depend on, whatever the weights.

    This is the theoretical receptive field, clipped to the image: the support of the position's gradient in a copy of the
    network that passes every gradient (:class:`~.passing_network.PassingNetwork`). Branches, pools, slices and gates are
    handled; global operations (squeeze-and-excitation, a normalisation over positions) give the whole image.

    If no gradient shows the dependence, because of an ``argmax`` before the position or because it is constant (in the
    padding), the box is the whole image, so that it never misses a relevant pixel.

    Args:
        view: a traced network; unchanged.
        node: outputs a feature map ``[n, C, h, w]``.
        places: the (row, column) positions in the map.
        example: an image ``[n, C, H, W]``; only its shape matters.
        passing: the copy that passes every gradient, to share between nodes; created if None.

    Raises:
        InputError: the node outputs no feature map, or a position is outside it.
    """
    height, width = _map_size(view, node, example)
    for row, column in places:
        if not (0 <= row < height and 0 <= column < width):
            raise InputError(
                f"{node.name} gives a map of {height} rows and {width} columns; ({row}, {column}) is not in it."
            )
    whole = Box(0, 0, example.shape[3], example.shape[2])
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *example.shape[1:], generator=generator, dtype=torch.float64) + 0.5
    image.requires_grad_()
    try:
        with torch.enable_grad():
            value = (passing or PassingNetwork(view)).run(node, image)
    except NoGradientError:
        return [whole] * len(places)
    if not value.requires_grad:
        return [whole] * len(places)
    # Channels are weighted differently, so that their sum is not constant after a normalisation over channels.
    weights = torch.rand(value.shape[1], generator=generator, dtype=torch.float64) + 0.5
    boxes = []
    for row, column in places:
        (gradient,) = torch.autograd.grad(weights @ value[0, :, row, column], image, retain_graph=True)
        seen = gradient[0] != 0
        boxes.append(supporting_region(seen.double()) if bool(seen.any()) else whole)
    return boxes


def _map_size(view: fx.GraphModule, node: fx.Node, example: Tensor) -> tuple[int, int]:
    with torch.no_grad():
        value = run_graph(view, example[:1], [node])[node]
    if not is_image_map(value):
        raise InputError(
            f"{node.name} gives no feature map of channels x height x width. Name a convolution or a block."
        )
    return value.shape[2], value.shape[3]


@dataclass(frozen=True)
class FieldMap:
    """The receptive fields of a map's positions: ``rows[r]`` is (top, bottom) and ``columns[c]`` is (left, right), in pixels.

    The second of each is exclusive: the first row or column after the field."""

    rows: tuple[Interval, ...]
    columns: tuple[Interval, ...]

    def box(self, row: int, column: int) -> Box:
        """The field of one position."""
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return Box(left, top, right, bottom)


class FieldMaps:
    """The receptive fields of a traced network's maps, computed once per map.

    ``example`` is an image ``[n, C, H, W]``, of which only the shape matters.
    """

    def __init__(self, view: fx.GraphModule, example: Tensor) -> None:
        self.view, self.example = view, example
        self._known: dict[fx.Node, FieldMap | None] = {}

    def boxes(self, node: fx.Node, height: int, width: int, places: Sequence[tuple[int, int]]) -> list[Box]:
        """The boxes of positions (row, column) of a node's map of ``height`` x ``width``.

        Raises:
            InputError: as :func:`receptive_fields`.
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
    """The fields of all positions of a map of ``size`` (height, width), or None if they must be computed one by one.

    The fields of convolutions and pools are intervals of rows and columns that move by a constant step from position to
    position, clipped to the image. They follow from the two outermost rows and columns on each side. Two other positions
    inside must agree with :func:`receptive_fields`; otherwise the map has other fields (a transposition, attention).

    Raises:
        InputError: as ``receptive_fields``.
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
    """Intervals of all positions from those at both ends: they move by a constant step unless clipped to the image."""
    first, last = known[0], known[size - 1]
    before, after = known[max(0, size - 2)], known[min(1, size - 1)]
    start_step = last[0] - before[0] if before[0] > first[0] else last[0] - first[0]
    end_step = after[1] - first[1] if after[1] < last[1] else last[1] - first[1]
    return tuple(
        (max(first[0], last[0] - start_step * (size - 1 - place)), min(last[1], first[1] + end_step * place))
        for place in range(size)
    )
