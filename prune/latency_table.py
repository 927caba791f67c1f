"""A latency table: the time of each layer at measured widths, and interpolated in between. Pure arithmetic on plain data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import InputError
from ..common.files import read_json, sha256_json, write_json

BLOCK = 16
"""Runtimes work on blocks of up to this many channels. Widths have the same alignment if they have the same greatest common
divisor with it."""


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one call of a layer: ``ms[i][j]`` at the widths ``outputs[i]`` and ``inputs[j]``, both ascending.

    A depthwise layer has a single column.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    @property
    def points(self) -> int:
        return len(self.outputs) * len(self.inputs)

    def monotone(self) -> "LayerTimes":
        """A copy in which a layer is never slower than a wider one of the same alignment.

        Disturbances only add to a measured time, and of two widths with the same alignment the narrower is not slower. So
        every point becomes the minimum over itself and the wider points of its alignment.
        """
        rows = [[self._least(i, j) for j in range(len(self.inputs))] for i in range(len(self.outputs))]
        return replace(self, ms=tuple(map(tuple, rows)))

    def _least(self, row: int, column: int) -> float:
        rows, columns = _wider_alike(self.outputs, row), _wider_alike(self.inputs, column)
        return min(self.ms[i][j] for i in rows for j in columns)

    def at(self, outputs: int, inputs: int) -> float:
        """Milliseconds at a pair of widths; 0 if either is 0, since a constant replaces the layer then.

        A measured pair returns its measured time. In between, the interpolation is bilinear among measured widths of the same
        alignment, because a width that is no multiple of the runtime's blocks may be slower than a wider one that is. Outside
        the measured range the nearest measured width counts.
        """
        if outputs == 0 or inputs == 0:
            return 0.0
        rows, columns = alike(self.outputs, outputs), alike(self.inputs, inputs)
        along = [self.inputs[column] for column in columns]
        by_row = [np.interp(inputs, along, [self.ms[row][column] for column in columns]) for row in rows]
        return float(np.interp(outputs, [self.outputs[row] for row in rows], by_row))


@dataclass(frozen=True)
class LatencyTable:
    """The latency of a network as a function of its widths, for one batch size on one device.

    Attributes:
        layers: the times of every call of a layer, by layer.
        offset_ms: what the network takes besides these layers, whatever their widths (elementwise operations, copies,
            dispatch).
        about: device, provider, precision, batch size and versions.
        scale: a factor on the layers' times. It is below 1 if the layers, timed one by one, take longer than the whole
            network, since each then pays for copies that the whole does not make.
    """

    layers: Mapping[str, tuple[LayerTimes, ...]]
    offset_ms: float
    about: Mapping[str, Any]
    scale: float = 1.0

    @cached_property
    def sha256(self) -> str:
        """The hash of the table's content, which a plan made with it records."""
        return sha256_json(self.to_json())

    @property
    def measured_points(self) -> int:
        """The number of pairs of widths in the table, timed or filled in; equal layers share theirs."""
        return sum(times.points for times in {times for calls in self.layers.values() for times in calls})

    def layer_ms(self, layer: str, outputs: int, inputs: int) -> float:
        """Milliseconds of all calls of a layer at these widths; 0 for a layer without an entry."""
        return self.scale * sum(times.at(outputs, inputs) for times in self.layers.get(layer, ()))

    def to_json(self) -> dict[str, Any]:
        layers = {name: [asdict(times) for times in calls] for name, calls in self.layers.items()}
        plain = {
            name: [{key: [*map(_plain, value)] for key, value in times.items()} for times in calls]
            for name, calls in layers.items()
        }
        return {"layers": plain, "offset_ms": self.offset_ms, "scale": self.scale, "about": dict(self.about)}

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: the file is missing or holds no latency table.
        """
        values = read_json(path)
        try:
            layers = {
                name: tuple(
                    LayerTimes(tuple(one["outputs"]), tuple(one["inputs"]), tuple(tuple(row) for row in one["ms"]))
                    for one in calls
                )
                for name, calls in values["layers"].items()
            }
            return cls(layers, float(values["offset_ms"]), dict(values["about"]), float(values["scale"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is no latency table of secateur ({error!r}). Measure it again.") from error


def alike(measured: Sequence[int], width: int) -> list[int]:
    """Indices of the measured widths to interpolate a width from: itself, else those of its alignment if they enclose it."""
    if width in measured:
        return [measured.index(width)]
    same = [index for index, known in enumerate(measured) if math.gcd(known, BLOCK) == math.gcd(width, BLOCK)]
    if same and measured[same[0]] < width < measured[same[-1]]:
        return same
    return list(range(len(measured)))


def _wider_alike(measured: Sequence[int], place: int) -> list[int]:
    own = math.gcd(measured[place], BLOCK)
    return [index for index in range(place, len(measured)) if math.gcd(measured[index], BLOCK) == own]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
