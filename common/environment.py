"""The machine that a run uses: its description for reports, the device, seeds."""

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
    """The machine that a figure was measured on. ``gpu``, ``cuda`` and ``driver`` (NVIDIA's version) are None without a GPU."""

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
    """Describe this machine: processor, memory, GPU and the package versions that figures depend on."""
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
    """The SHA-256 of secateur's own code: results cached from run to run depend on it."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(
        [*root.glob("*.py"), *(path for package in subpackages(root) for path in (root / package).glob("*.py"))]
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def subpackages(root: Path) -> list[str]:
    """The packages below a folder, as paths relative to it."""
    found = []
    for path in sorted(root.glob("*/__init__.py")):
        name = path.parent.name
        found += [name, *(f"{name}/{inner}" for inner in subpackages(path.parent))]
    return found


def installed_packages() -> dict[str, str]:
    """The versions of the packages that results depend on, without those that are not installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def available_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(name: str) -> str:
    """The device for ``auto``, ``cpu`` or ``cuda``; ``auto`` is ``cuda`` where torch sees a GPU.

    Raises:
        MachineError: ``cuda`` was requested and torch sees no GPU.
        UsageError: ``name`` is none of the three.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device must be auto, cpu or cuda (got {name!r}).")
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "--device cuda was requested, but torch sees no CUDA GPU. Run `secateur doctor` to see why, or use --device auto."
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
    """The driver version in the text of ``/proc/driver/nvidia/version``."""
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text, re.MULTILINE)
    return found[1] if found else None


@functools.cache
def _driver_version() -> str | None:
    """The version of NVIDIA's driver: from the kernel module on Linux, else from nvidia-smi."""
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
