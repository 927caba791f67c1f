"""A latency table: what layers take at the widths that were measured, and in between. Pure arithmetic on plain data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import InputError
from ...common.files import read_json, sha256_json, write_json

BLOCK = 16
"""Runtimes work on blocks of up to so many channels: widths are alike that share the same power of two up to it."""


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one call of a layer: ``ms[i][j]`` at the widths ``outputs[i]`` and ``inputs[j]``, both ascending.

    A depthwise layer has one column, whatever its inputs.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    @property
    def points(self) -> int:
        return len(self.outputs) * len(self.inputs)

    def monotone(self) -> "LayerTimes":
        """The same without what disturbed single measurements.

        What disturbs a measurement only adds to it, and of widths aligned alike a narrower one is not slower: so every pair
        gets the least of what was measured at it and at wider ones aligned alike.
        """
        rows = [[self._least(i, j) for j in range(len(self.inputs))] for i in range(len(self.outputs))]
        return replace(self, ms=tuple(map(tuple, rows)))

    def _least(self, row: int, column: int) -> float:
        rows, columns = _wider_alike(self.outputs, row), _wider_alike(self.inputs, column)
        return min(self.ms[i][j] for i in rows for j in columns)

    def at(self, outputs: int, inputs: int) -> float:
        """Milliseconds at a pair of widths; nothing where either is 0, as a constant takes the layer's place then.

        A measured pair gives what was measured: a narrower layer may be slower, where its width leaves the runtime's blocks. In
        between it is bilinear among measured widths that are aligned alike, so that a width off the
        blocks is not taken for one on them; beyond the ends it is what the end takes.
        """
        if outputs == 0 or inputs == 0:
            return 0.0
        rows, columns = alike(self.outputs, outputs), alike(self.inputs, inputs)
        along = [self.inputs[column] for column in columns]
        by_row = [np.interp(inputs, along, [self.ms[row][column] for column in columns]) for row in rows]
        return float(np.interp(outputs, [self.outputs[row] for row in rows], by_row))


@dataclass(frozen=True)
class LatencyTable:
    """What a network takes as a function of its widths, for one batch size on one device.

    ``layers``: one entry for each call of a layer; layers without an entry are part of ``offset_ms``, which is what the whole
    network takes beyond its layers, whatever their widths (elementwise work, copies, dispatch). Where layers one by one take
    more than the whole, as each pays for copies that it does not need beside the others, ``scale`` brings them to it.
    ``about``: device, provider, precision, batch, versions.
    """

    layers: Mapping[str, tuple[LayerTimes, ...]]
    offset_ms: float
    about: Mapping[str, Any]
    scale: float = 1.0

    @cached_property
    def sha256(self) -> str:
        """What a plan made with this table is made of."""
        return sha256_json(self.to_json())

    @property
    def measured_points(self) -> int:
        """Pairs of widths that were timed; layers of one kind share theirs."""
        return sum(times.points for times in {times for calls in self.layers.values() for times in calls})

    def layer_ms(self, layer: str, outputs: int, inputs: int) -> float:
        """Milliseconds of all calls of a layer at these widths; 0 for a layer that the table does not hold."""
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
            InputError: missing, or no latency table.
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
    """Where in the measured widths to look for one: at itself, or at those that share its alignment and lie around it."""
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
