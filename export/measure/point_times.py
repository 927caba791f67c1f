"""Times of single operations at the widths that are wanted, and of a whole network: timed once, and cached between runs.

Points are cached on disk by device, provider and its options, precision, batch size, version of ONNX Runtime and case, one file
per case, so that an interrupted measurement resumes and other networks reuse them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.environment import describe_environment
from ...common.errors import InputError
from ...common.files import read_json, sha256_file, sha256_json, write_json
from ...common.progress import Progress
from ...prune.cost import CostModel
from ..runtime.providers import ON_GPU, CudaOptions, runtime_packages
from .layer_graphs import empty_graph, layer_graph, overhead_graph
from .roofline import Roofline, fit_roofline
from .stopwatch import AT_ONCE, Stopwatch
from .timed_calls import Call, Case

CACHE_VERSION = 2
WHOLE_GRID = 12
"""Up to this many pairs of widths of a layer are all timed."""
Point = tuple[int, int]
Points = dict[Point, float]
"""Milliseconds by (outputs, inputs); inputs are 0 where the time depends on one width."""


@dataclass(frozen=True)
class Conditions:
    """The conditions of all times in a table. ``threads`` of an operator on the CPU; 0 for ONNX Runtime's choice."""

    provider: str
    batch: int
    threads: int = 0
    precision: str = "fp32"

    @property
    def symmetric(self) -> bool:
        """Whether int8's activations are signed."""
        return self.provider in ON_GPU

    def about(self) -> dict[str, Any]:
        """The conditions with the device, the provider's options and the runtime's version, as stored in the cache."""
        machine = describe_environment()
        on_gpu = self.provider in ON_GPU
        return {
            "version": CACHE_VERSION,
            "device": machine.gpu if on_gpu else machine.processor,
            "cores": machine.cores,
            "provider": self.provider,
            "precision": self.precision,
            "batch": self.batch,
            "threads": self.threads,
            "onnxruntime": next(iter(runtime_packages().values()), ""),
            **({"options": CudaOptions().to_dict()} if on_gpu else {}),
        }


@dataclass(frozen=True)
class Grid:
    """The widths of both sides at which a case is wanted, ascending; ``inputs`` are (0,) where the time depends on one."""

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def points(self) -> set[Point]:
        return {(out, into) for out in self.outputs for into in self.inputs}

    @property
    def timed(self) -> set[Point]:
        """The points to time: all if they are few, otherwise those at the full width of either side."""
        if len(self.outputs) * len(self.inputs) <= WHOLE_GRID:
            return self.points
        return {(out, into) for out, into in self.points if out == self.outputs[-1] or into == self.inputs[-1]}

    def fill(self, points: Points, model: Callable[[int, int], float]) -> None:
        """Add the points that were not timed, in place.

        A time is that of its row times that of its column over that of the corner, and what a model says to the same product.
        """
        last_out, last_in = self.outputs[-1], self.inputs[-1]
        for out, into in self.points - points.keys():
            row, column, corner = points[out, last_in], points[last_out, into], points[last_out, last_in]
            modelled = model(out, into) * model(last_out, last_in) / (model(out, last_in) * model(last_out, into))
            points[out, into] = min(row, column, row * column / corner * modelled if corner > 0 else 0.0)


@dataclass(frozen=True)
class PointTimes:
    """Times points, and the whole network, with a stopwatch; ``about`` is part of every key in the cache ``folder``."""

    watch: Stopwatch
    conditions: Conditions
    about: Mapping[str, Any]
    folder: Path

    def all_points(self, grids: Mapping[Case, set[Grid]], source: str, progress: Progress) -> dict[Case, Points]:
        """Every wanted point of every case."""
        timed = {case: set().union(*(grid.timed for grid in wanted)) for case, wanted in grids.items()}
        filled = source == "roofline" or any(grid.points - grid.timed for wanted in grids.values() for grid in wanted)
        roofline = self.roofline() if filled else None
        total, done = sum(map(len, timed.values())), 0
        known: dict[Case, Points] = {}
        for case, wanted in grids.items():

            def model(out: int, into: int, case: Case = case) -> float:
                assert roofline is not None
                return roofline.ms(case, out, into, self.conditions.batch, self.conditions.precision)

            if source == "roofline":
                known[case] = {point: model(*point) for grid in wanted for point in grid.points}
                continue

            def step(count: int, before: int = done) -> None:
                progress(before + count, total)

            known[case] = self.points(case, timed[case], step)
            for grid in sorted(wanted, key=lambda grid: (grid.outputs, grid.inputs)):
                grid.fill(known[case], model)
            done += len(timed[case])
            progress(done, total)
        return known

    def roofline(self) -> Roofline:
        """The machine's roofline under these conditions, cached."""
        how = self.conditions
        key = {**self.about, "what": "roofline"}
        path = self.folder / f"roofline-{sha256_json(key)[:16]}.json"
        try:
            return Roofline(**_read(path, key)["roofline"])
        except (KeyError, TypeError):
            found = fit_roofline(self.watch, how.batch, how.precision, how.symmetric)
            write_json(path, {"key": key, "roofline": found.to_json()})
            return found

    def points(self, case: Case, wanted: set[Point], progress: Callable[[int], None] = lambda done: None) -> Points:
        """Points of a case: cached ones, and the others timed and cached."""
        how = self.conditions
        key = {**self.about, "layer": _plain(case.to_json())}
        path = self.folder / f"{case.kind}-{sha256_json(key)[:16]}.json"
        points = _kept(path, key)
        missing = sorted(wanted - points.keys())
        for start in range(0, len(missing), AT_ONCE):
            chunk = missing[start : start + AT_ONCE]
            graphs = [layer_graph(case, out, into, how.batch, how.precision, how.symmetric) for out, into in chunk]
            bases = {out: overhead_graph(case, out, how.batch, how.precision, how.symmetric) for out, _ in chunk}
            of_base = {graph: place for place, graph in enumerate(dict.fromkeys(bases.values()))}
            times = self.watch.times([*of_base, *graphs])
            for (out, into), ms in zip(chunk, times[len(of_base) :], strict=True):
                points[out, into] = float(f"{max(0.0, ms - times[of_base[bases[out]]]):.6g}")
            write_json(path, {"key": key, "ms": {f"{out}x{into}": ms for (out, into), ms in sorted(points.items())}})
            progress(len(wanted) - len(missing) + start + len(chunk))
        return points

    def whole(
        self,
        calls: Mapping[str, Sequence[Call]],
        costs: CostModel,
        layers_ms: float,
        baseline: Path,
        source: str,
    ) -> float:
        """The baseline's time in the milliseconds of its operations' table, from runs of the whole alternating with runs of
        all its layers.
        """
        batch, how = self.conditions.batch, self.conditions
        parts: dict[tuple[Case, int, int], int] = {}
        order, series_ms = [], 0.0
        for name, found in calls.items():
            for call in found:
                if call.width:  # a join cannot be run without a layer, and the others are small
                    continue
                outputs, inputs = costs.layers[name].outputs, costs.layers[name].inputs or 0
                order.append(parts.setdefault((call.case, outputs, inputs), len(parts)))
                point = outputs, 0 if call.case.one_width else inputs
                series_ms += self.points(call.case, {point})[point]
        key = {**self.about, "network": sha256_file(baseline), "layers": sorted(calls)}
        path = self.folder / f"network-{sha256_json(key)[:16]}.json"
        kept = _read(path, key)
        try:
            return float(kept["whole_ms"])
        except (KeyError, TypeError, ValueError):
            graphs = [
                layer_graph(case, outputs, inputs, batch, how.precision, how.symmetric)
                for case, outputs, inputs in parts
            ]
            ratio = self.watch.whole_to_parts(baseline, batch, graphs, order)
            (call_ms,) = self.watch.times([empty_graph(batch)])
            whole_ms = float(f"{ratio * (series_ms + len(order) * call_ms):.6g}")
            write_json(path, {"key": key, "whole_ms": whole_ms, "whole_to_parts": ratio, "call_ms": call_ms})
            return whole_ms


def _kept(path: Path, key: Mapping[str, Any]) -> Points:
    """The points in a cache file; none if it is missing, damaged or from other conditions."""
    values = _read(path, key)
    try:
        pairs = ((text.split("x"), float(ms)) for text, ms in values["ms"].items())
        return {(int(out), int(into)): ms for (out, into), ms in pairs if math.isfinite(ms) and ms >= 0}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _read(path: Path, key: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = read_json(path)
    except InputError:
        return {}
    return values if isinstance(values, dict) and values.get("key") == key else {}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
