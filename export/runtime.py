"""ONNX Runtime sessions that run where they say they run."""

import contextlib
import functools
import io
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, MachineError, UsageError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True)
class Runtime:
    """A session and the provider that it really runs on: cpu, cuda or tensorrt."""

    session: Any
    provider: str


@dataclass(frozen=True)
class ProviderChoice:
    """The provider that will be used; ``note`` says aloud what was fallen back from, and why."""

    provider: str
    note: str = ""


def choose_provider(wanted: str) -> ProviderChoice:
    """``auto`` to CUDA where a convolution runs on it, else the CPU; a provider by name, or an error.

    Raises:
        MachineError: the provider asked for is not there, does not run, or both onnxruntime packages are installed.
    """
    if wanted not in ("auto", *PROVIDERS):
        raise UsageError(f"provider must be auto, {', '.join(PROVIDERS)} (got {wanted!r}).")
    _refuse_both_packages()
    if wanted == "cpu":
        return ProviderChoice("cpu")
    if wanted == "auto":
        reason = why_not("cuda")
        if not reason:
            return ProviderChoice("cuda")
        import torch

        note = (
            f"ONNX Runtime falls back to the CPU although there is a GPU: {reason}" if torch.cuda.is_available() else ""
        )
        return ProviderChoice("cpu", note)
    reason = why_not(wanted)
    if reason:
        raise MachineError(f"The provider {wanted} is required but does not run here: {reason} Try `secateur doctor`.")
    return ProviderChoice(wanted)


@functools.cache
def why_not(provider: str) -> str:
    """Why a provider does not run on this machine; empty if it does. One small convolution is run on it to know."""
    import torch

    onnxruntime = _onnxruntime()
    if provider == "cpu":
        return ""
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        return f"this onnxruntime build has no {PROVIDERS[provider]}."
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU."
    try:
        session = _session(_small_convolution(), provider)
        session.run(None, {"x": np.ones((1, 3, 8, 8), np.float32)})
    except Exception as error:  # the provider's libraries fail in their own ways
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    real = session.get_providers()[0]
    return "" if real == PROVIDERS[provider] else f"a session asked for it runs on {real}."


def open_session(path: Path, provider: str = "cpu") -> Runtime:
    """Open an ONNX file on a provider.

    Raises:
        InputError: no such file, or no ONNX model.
        MachineError: the session runs elsewhere than asked.
    """
    if not path.is_file():
        raise InputError(f"The ONNX file {path} does not exist.")
    try:
        session = _session(path.read_bytes(), provider)
    except Exception as error:  # onnxruntime raises kinds of its own that share no base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"ONNX Runtime cannot open {path}: {reason}") from error
    real = session.get_providers()[0]
    if real != PROVIDERS[provider]:
        raise MachineError(f"{path.name} was to run on {provider}, but its session runs on {real}.")
    return Runtime(session, provider)


def _session(model: bytes, provider: str) -> Any:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Idle threads of one session must not spin beside another that is being timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen: list[Any] = [PROVIDERS[provider]]
    if provider == "cuda":
        chosen = [(PROVIDERS["cuda"], {"cudnn_conv_algo_search": "EXHAUSTIVE"})]
    elif provider == "tensorrt":
        chosen = [PROVIDERS["tensorrt"], PROVIDERS["cuda"]]
    return onnxruntime.InferenceSession(model, options, providers=chosen)


@functools.cache
def _onnxruntime() -> Any:
    """onnxruntime with torch's CUDA libraries loaded first, its own chatter kept off the terminal."""
    import onnxruntime
    import torch

    onnxruntime.set_default_logger_severity(4)
    if torch.cuda.is_available() and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    return onnxruntime


def _refuse_both_packages() -> None:
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            found.append(name)
    if len(found) == 2:
        raise MachineError(
            "Both onnxruntime and onnxruntime-gpu are installed, and together they lose CUDA. "
            "Run `pip uninstall onnxruntime onnxruntime-gpu`, then install secateur again."
        )


def _small_convolution() -> bytes:
    from onnx import TensorProto, checker, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 3, 3), np.ones(108, np.float32))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 6, 6))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(model)
    return bytes(model.SerializeToString())
