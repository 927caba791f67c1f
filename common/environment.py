"""What this machine is, which device work runs on, and the seeds."""

import contextlib
import functools
import hashlib
import os
import platform
import random
import re
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .errors import MachineError, UsageError

PACKAGES = (
    "secateur",
    "torch",
    "torchvision",
    "torch-pruning",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
)


@dataclass(frozen=True)
class Environment:
    """The machine that a figure was measured on. ``gpu`` and ``driver`` (NVIDIA's version) are None without one."""

    python: str
    system: str
    processor: str
    cores: int
    memory_gib: float | None
    gpu: str | None
    cuda: str | None
    driver: str | None
    packages: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def describe_environment() -> Environment:
    """Read the processor, the memory, the GPU and the versions that figures depend on."""
    import torch

    has_gpu = torch.cuda.is_available()
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        processor=_processor_name(),
        cores=available_cores(),
        memory_gib=_memory_gib(),
        gpu=torch.cuda.get_device_name(0) if has_gpu else None,
        cuda=torch.version.cuda if has_gpu else None,
        driver=_driver_version() if has_gpu else None,
        packages=installed_packages(),
    )


@functools.cache
def code_sha256() -> str:
    """The hash of secateur's own code, for what is kept from run to run."""
    root = Path(__file__).resolve().parent.parent
    files = sorted([*root.glob("*.py"), *(path for room in rooms(root) for path in (root / room).glob("*.py"))])
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def rooms(root: Path) -> list[str]:
    """The packages in a folder, as paths from it: every folder below that holds an ``__init__.py``."""
    found = []
    for path in sorted(root.glob("*/__init__.py")):
        name = path.parent.name
        found += [name, *(f"{name}/{inner}" for inner in rooms(path.parent))]
    return found


def installed_packages() -> dict[str, str]:
    """Versions of the packages that results depend on; those not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def available_cores() -> int:
    """The cores this process may use (a container's share, where the system tells it)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(name: str) -> str:
    """``auto``, ``cpu`` or ``cuda`` to the device that work runs on.

    Raises:
        MachineError: ``cuda`` was asked for and torch sees no GPU.
        UsageError: another name.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device must be auto, cpu or cuda (got {name!r}).")
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "--device cuda was asked for, but torch sees no CUDA GPU here. Run `secateur doctor`, or use --device auto."
        )
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def driver_in(text: str) -> str | None:
    """The version in what NVIDIA's kernel module says of itself in ``/proc/driver/nvidia/version``."""
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text, re.MULTILINE)
    return found[1] if found else None


@functools.cache
def _driver_version() -> str | None:
    """The version of NVIDIA's driver: from the kernel module where Linux tells it, else from nvidia-smi."""
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        if found := driver_in(text):
            return found
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return next(iter(done.stdout.split()), None)
    return None


def _memory_gib() -> float | None:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemTotal:"):
                return round(int(line.split()[1]) / 2**20, 1)
    return None
