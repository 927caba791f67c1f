"""The time of single graphs on a provider, measured alternately, so that drift of the machine affects all equally."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..runtime.providers import ON_GPU
from ..runtime.session import SessionSettings, open_session

TURNS, TURN_SECONDS = 8, 1.5e-3
AT_ONCE = 16
"""Sessions that are open at once; each keeps its own threads."""
SERIES_TURNS, SERIES_SECONDS = 20, 2.0
TYPES: Mapping[str, Any] = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
"""The types of inputs that are not float32."""


class Stopwatch(Protocol):
    """Times serialised ONNX models with fixed input shapes, see :class:`SessionStopwatch`."""

    def times(self, graphs: Sequence[bytes]) -> list[float]:
        """Milliseconds of one run of each graph, all timed alternately."""

    def whole_to_parts(self, whole: Path, batch: int, parts: Sequence[bytes], order: Sequence[int]) -> float:
        """The time of a network's file over that of its parts, run one after another in ``order``."""


class SessionStopwatch:
    """Runs graphs in ONNX Runtime with inputs and outputs left on the device.

    A graph's time is the minimum over its runs, since other programs only add to it.

    Args:
        threads: of an operator on the CPU; 0 for ONNX Runtime's own choice.
    """

    def __init__(self, provider: str, threads: int = 0) -> None:
        self.provider, self.settings = provider, SessionSettings(threads)

    def times(self, graphs: Sequence[bytes]) -> list[float]:
        """Milliseconds of one run of each graph: the minimum over ``TURNS`` turns of as many runs as fill 1.5 ms.

        Raises:
            InputError, MachineError: as :func:`~secateur.export.runtime.open_session`.
        """
        with tempfile.TemporaryDirectory() as folder:
            runs = [self._runner(graph, Path(folder)) for graph in graphs]
        repeats = []
        for run in runs:
            run()
            repeats.append(max(1, min(200, round(TURN_SECONDS / max(1e-7, _seconds(run))))))
        best = [float("inf")] * len(runs)
        for _ in range(TURNS):
            for index, run in enumerate(runs):
                for _ in range(repeats[index]):
                    best[index] = min(best[index], _seconds(run))
        return [1e3 * seconds for seconds in best]

    def whole_to_parts(self, whole: Path, batch: int, parts: Sequence[bytes], order: Sequence[int]) -> float:
        """The minimum time of the whole over that of the series, timed alternately.

        The series takes as long as the whole, so that other processes disturb both equally. The sum of single layers, each
        short enough to run undisturbed, would be too low compared with the whole.
        """
        with tempfile.TemporaryDirectory() as folder:
            runs = [self._runner(part, Path(folder)) for part in parts]
            whole_run = self._runner(whole.read_bytes(), Path(folder), batch)

        def series() -> None:
            for index in order:
                runs[index]()

        for run in (whole_run, series):
            run()
            run()
        turns = max(SERIES_TURNS, round(SERIES_SECONDS / (_seconds(whole_run) + _seconds(series))))
        seconds = [(_seconds(whole_run), _seconds(series)) for _ in range(min(turns, 50 * SERIES_TURNS))]
        return min(whole for whole, _ in seconds) / min(parts for _, parts in seconds)

    def _runner(self, graph: bytes, folder: Path, batch: int = 1) -> Callable[[], None]:
        from onnxruntime import OrtValue

        path = folder / "graph.onnx"
        path.write_bytes(graph)
        session: Any = open_session(path, self.provider, self.settings).session
        device = "cuda" if self.provider in ON_GPU else "cpu"
        binding = session.io_binding()
        for taken in session.get_inputs():
            shape = [size if isinstance(size, int) else batch for size in taken.shape]
            noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            values = noise.astype(TYPES.get(taken.type, np.float32))
            binding.bind_ortvalue_input(taken.name, OrtValue.ortvalue_from_numpy(values, device, 0))
        binding.bind_output(session.get_outputs()[0].name, device)

        def run() -> None:
            session.run_with_iobinding(binding)

        return run


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
