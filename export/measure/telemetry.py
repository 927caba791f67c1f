"""Clocks, power and memory during a measurement. Values that the machine does not report are None."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..runtime.classifier import noise_images, read_classifier
from ..runtime.providers import ON_GPU, failure

QUERY = {
    "clocks.sm": "gpu_sm_mhz",
    "clocks.mem": "gpu_memory_mhz",
    "power.draw": "gpu_watts",
    "temperature.gpu": "gpu_celsius",
}
"""Queries of nvidia-smi, and their names here."""
_PACKAGE_ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
_CPUINFO = Path("/proc/cpuinfo")
PROBE_SECONDS = 120


@dataclass(frozen=True)
class Reading:
    """Clocks in MHz (for the CPU, the mean over its cores), power in watts and temperature in degrees Celsius at one moment."""

    cpu_mhz: float | None
    gpu_sm_mhz: float | None
    gpu_memory_mhz: float | None
    gpu_watts: float | None
    gpu_celsius: float | None


@dataclass
class Conditions:
    """Readings before and after a measurement; ``package_watts`` is the mean power of the CPU package in between, if
    reported.
    """

    before: Reading
    after: Reading | None = None
    package_watts: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def observed_conditions() -> Iterator[Conditions]:
    """Read clocks and power before and after a block; the conditions are complete when it ends."""
    found = Conditions(read_clocks())
    energy, start = _package_joules(), time.perf_counter()
    try:
        yield found
    finally:
        used, seconds = _package_joules(), time.perf_counter() - start
        if energy is not None and used is not None and used >= energy:  # the counter wraps round
            found.package_watts = (used - energy) / seconds
        found.after = read_clocks()


def read_clocks() -> Reading:
    """The current clocks, power and temperature, as reported by the system and nvidia-smi."""
    gpu = _nvidia_smi()
    return Reading(_cpu_mhz(), *(gpu.get(name) for name in QUERY))


def peak_memory(path: Path, batch: int, input_shape: tuple[int, int, int], provider: str, threads: int) -> int | None:
    """The peak growth in bytes of a separate process that opens a file and runs it three times.

    Resident memory on the CPU, the driver's used memory on a GPU. None if the system reports neither or the process fails.
    """
    try:
        given = "uint8" if read_classifier(path).takes_pixels else "float32"
        arguments = [str(path.resolve()), given, ",".join(map(str, (batch, *input_shape))), provider, str(threads)]
        done = subprocess.run(
            [sys.executable, "-m", __name__, *arguments],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return None if found is None else int(found)


def _grown(path: Path, pixels: bool, shape: tuple[int, ...], provider: str, threads: int) -> int | None:
    """The work of the measured process."""
    from ..runtime.bound_runs import bind
    from ..runtime.providers import runtime_library
    from ..runtime.session import SessionSettings

    images = noise_images(shape, pixels)
    runtime_library()
    before = _gpu_used() if provider in ON_GPU else _resident(reset=True)
    if before is None:
        return None
    classifier = read_classifier(path)
    runs = bind(classifier, images, classifier.classes or 1, provider, SessionSettings(threads))
    peak = before
    for _ in range(3):
        runs.end_to_end()
        peak = max(peak, (_gpu_used() if provider in ON_GPU else _resident()) or 0)
    return peak - before


def _resident(reset: bool = False) -> int | None:
    """The peak resident memory in bytes since the last reset (Linux)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def _gpu_used() -> int | None:
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _cpu_mhz() -> float | None:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def _package_joules() -> float | None:
    try:
        return int(_PACKAGE_ENERGY.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _nvidia_smi() -> dict[str, float | None]:
    """The first GPU's values by nvidia-smi's names; empty if there is no GPU or nvidia-smi fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().splitlines()[:1]
    return dict(zip(QUERY, map(_number, values[0].split(",")), strict=False)) if values else {}


def _number(text: str) -> float | None:
    """A number; None for [N/A] or [Not Supported], which nvidia-smi prints for values that a card does not report."""
    try:
        return float(text)
    except ValueError:
        return None


def _main(arguments: list[str]) -> None:
    path, given, shape, provider, threads = arguments
    try:
        found = _grown(Path(path), given == "uint8", tuple(map(int, shape.split(","))), provider, int(threads))
    except Exception as error:
        print(failure(error), file=sys.stderr)
        raise SystemExit(1) from error
    print(json.dumps(found))


if __name__ == "__main__":
    _main(sys.argv[1:])
