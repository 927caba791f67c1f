"""Receptive fields: the pixels of the image that a place of a feature map can depend on.

``receptive_fields`` finds them for single places, by gradients in a copy of the network that passes every gradient.
``FieldMaps`` finds those of whole maps from a few places, where rows and columns do not affect each other.
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
    """For each place the smallest box with all pixels on which it can depend, whatever the weights.

    That is the theoretical receptive field, cut at the image's edge: the support of the place's gradient in a copy of the
    network that passes every gradient (:class:`~.passing_network.PassingNetwork`). Branches, pools, slices and gates are
    followed; what sees everything (squeeze and excitation, a normalisation over places) gives the whole image.

    Where no gradient tells on what a place depends, because there is an ``argmax`` or the like before it, or because it is
    constant (a place of the padding), the box is the whole image: it never leaves out a pixel that counts.

    Args:
        view: a traced network; it is left as it was.
        node: gives a feature map ``[n, C, h, w]``.
        places: (row, column) in it.
        example: of an image only the shape counts, ``[n, C, H, W]``.
        passing: that copy, where several nodes are asked for; made here if it is not given.

    Raises:
        InputError: the node gives no feature map, or has no such place.
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
    # Channels count differently, so that the sum over them is not constant where the network itself normalises them.
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
            InputError: what :func:`receptive_fields` raises.
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
    agree with :func:`receptive_fields`, else the map has another kind of fields (a transposition, attention).

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
