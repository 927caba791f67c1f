"""Check what works on this machine, and name the commands that fix what does not."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...common.environment import available_cores, installed_packages
from ...common.errors import MachineError, UsageError
from ...export.runtime.provider_choice import why_not
from ...export.runtime.providers import PROVIDERS, runtime_library, runtime_packages

READY = "ready"
_FIXES = {
    "cuda": "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]' (and a driver: `nvidia-smi` must answer)",
    "openvino": "in an environment of its own: pip uninstall onnxruntime-gpu; pip install onnxruntime-openvino",
}


@dataclass(frozen=True)
class Finding:
    """One requirement of secateur: what was ``found``, whether it ``works``, and what to do if it does not."""

    name: str
    found: str
    works: bool
    fix: str = ""

    @property
    def advice(self) -> str:
        return READY if self.works and not self.fix else self.fix


def examine() -> list[Finding]:
    """Test every requirement: each provider by running a convolution, each folder by writing into it."""
    return [
        *_machine(),
        _runtime_package(),
        *(_provider(name) for name in PROVIDERS),
        _compiler(),
        _optional("timm", "timm:NAME as --model", "pip install 'secateur[timm]'"),
        *_folders(),
    ]


def require(findings: Iterable[Finding], provider: str) -> None:
    """Check that a provider works.

    Raises:
        UsageError: the provider does not exist.
        MachineError: the provider does not run on this machine.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"--require must be one of {', '.join(PROVIDERS)} (got {provider!r}).")
    for finding in findings:
        if finding.name == f"provider {provider}" and not finding.works:
            raise MachineError(f"The provider {provider} is required but does not run here: {finding.advice}")


def _machine() -> list[Finding]:
    packages, cores = installed_packages(), available_cores()
    found = [
        Finding("torch", packages.get("torch", "missing"), "torch" in packages),
        Finding(
            "cores",
            str(cores),
            True,
            "" if cores > 1 else "a single core: latency measurements compete with other processes",
        ),
    ]
    driver = _driver()
    found.append(
        Finding(
            "driver",
            driver or "none reported by nvidia-smi",
            bool(driver),
            ""
            if driver
            else "everything runs on the CPU; to use a GPU, install NVIDIA's driver, and start containers with --gpus all",
        )
    )
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(0)
        name = f"{torch.cuda.get_device_name(0)}, compute capability {major}.{minor}, CUDA {torch.version.cuda}"
        return [*found, Finding("GPU", name, True)]
    built = f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch was built without CUDA"
    fix = "everything runs on the CPU"
    if driver:
        fix = "pip install --upgrade torch (from the CUDA index of your driver's version; pytorch.org names it)"
    return [*found, Finding("GPU", f"none visible to torch; {built}", False, fix)]


def _driver() -> str:
    """The driver's version and the card, from nvidia-smi; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(done.stdout.strip().splitlines())


def _runtime_package() -> Finding:
    packages = runtime_packages()
    found = ", ".join(f"{name} {version}" for name, version in packages.items()) or "missing"
    if len(packages) > 1:
        names = " ".join(packages)
        fix = f"they overwrite each other's files: pip uninstall {names}, then install secateur again"
        return Finding("ONNX Runtime", found, False, fix)
    return Finding("ONNX Runtime", found, bool(packages), "" if packages else "pip install --upgrade secateur")


def _provider(name: str) -> Finding:
    reason = why_not(name)
    if not reason:
        return Finding(f"provider {name}", "runs a convolution", True)
    return Finding(f"provider {name}", "does not run", False, f"{reason} {_fix(name)}".strip())


def _fix(provider: str) -> str:
    """The command to install a provider; TensorRT's package must match the CUDA version of onnxruntime."""
    if provider != "tensorrt":
        return _FIXES.get(provider, "")
    try:
        major = getattr(runtime_library(), "cuda_version", "").partition(".")[0]
    except ImportError:
        major = ""
    if not major:
        return _FIXES["cuda"]
    return f"pip install tensorrt-cu{major} (of the major version in the missing library's name, where one is named)"


def _compiler() -> Finding:
    """What ``torch.compile`` needs for the times of ``--torch-times``: Triton on a GPU, a C++ compiler on the CPU."""
    if torch.cuda.is_available():
        found = importlib.util.find_spec("triton") is not None
        return Finding(
            "torch.compile", "Triton" if found else "no Triton", found, "" if found else "pip install triton"
        )
    names = [name for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and shutil.which(name)]
    if names:
        return Finding("torch.compile", f"compiles with {Path(names[0]).name}", True)
    return Finding("torch.compile", "no C++ compiler", False, "install g++ or clang++ (for --torch-times)")


def _optional(package: str, what: str, command: str) -> Finding:
    if importlib.util.find_spec(package) is not None:
        return Finding(package, "installed", True)
    return Finding(package, "not installed", False, f"{command} (for {what})")


def _folders() -> list[Finding]:
    """The folders for torch's downloads and for temporary files."""
    cache, found = Path(torch.hub.get_dir()), []
    for name, folder, fix in (
        ("cache folder", cache, "set TORCH_HOME to a writable folder"),
        ("temporary folder", Path(tempfile.gettempdir()), "set TMPDIR to a writable folder"),
    ):
        place = next(part for part in (folder, *folder.parents) if part.is_dir())
        try:
            with tempfile.NamedTemporaryFile(dir=place):
                free = shutil.disk_usage(place).free
        except OSError as error:
            found.append(Finding(name, f"{folder}: {error.strerror}", False, fix))
        else:
            found.append(Finding(name, f"{folder}, {free / 1e9:.1f} GB free", True))
    return found
