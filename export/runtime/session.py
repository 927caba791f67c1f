"""ONNX Runtime sessions that run where they say they run."""

import contextlib
import functools
import importlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import InputError, MachineError, UsageError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
ON_GPU = ("cuda", "tensorrt")
CUDA_OPTIONS = {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "1"}
"""One convolution search for every session, so that two files are timed alike, and channels last, as tensor cores take them."""
FAILURE_CHARACTERS = 200
"""How much of a provider's own message is quoted."""


@dataclass(frozen=True)
class Runtime:
    """A session and the provider that it really runs on, by its short name in ``PROVIDERS``."""

    session: Any
    provider: str


@dataclass(frozen=True)
class SessionSettings:
    """How a session runs. ``threads``: of one operator on the CPU, 0 for ONNX Runtime's own choice.

    ``cuda_graphs``: the kernels of a run are recorded once and replayed. It needs CUDA or TensorRT, one batch size and inputs
    and outputs that stay where they are, so such a session runs through bound buffers only.
    """

    threads: int = 0
    cuda_graphs: bool = False


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
    try:
        available = runtime_library().get_available_providers()
    except ImportError as error:
        return f"onnxruntime cannot be imported: {failure(error)}."
    if PROVIDERS[provider] not in available:
        return f"this onnxruntime build has no {PROVIDERS[provider]}."
    if provider in ON_GPU:
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA GPU."
    try:
        session = _session(_small_convolution(), provider)
        (found,) = session.run(None, {"x": np.ones((1, 3, 8, 8), np.float32)})
    except Exception as error:  # the provider's libraries fail in their own ways
        return failure(error)
    real = session.get_providers()[0]
    if real != PROVIDERS[provider]:
        return f"a session asked for it runs on {real}."
    return "" if np.allclose(found, 27) else "a convolution of ones with 3x3x3 ones does not give 27 on it."


def open_session(path: Path, provider: str = "cpu", settings: SessionSettings | None = None) -> Runtime:
    """Open an ONNX file on a provider; weights in files beside it are found there.

    Raises:
        InputError: no such file, or no ONNX model.
        MachineError: the session runs elsewhere than asked.
        UsageError: CUDA graphs are asked for on a provider that has none.
    """
    settings = settings or SessionSettings()
    if settings.cuda_graphs and provider not in ON_GPU:
        raise UsageError(f"CUDA graphs need the provider cuda or tensorrt (got {provider}).")
    if not path.is_file():
        raise InputError(f"The ONNX file {path} does not exist.")
    try:
        session = _session(str(path), provider, settings)
    except Exception as error:  # onnxruntime raises kinds of its own that share no base
        raise InputError(f"ONNX Runtime cannot open {path}: {failure(error)}") from error
    real = session.get_providers()[0]
    if real != PROVIDERS[provider]:
        raise MachineError(f"{path.name} was to run on {provider}, but its session runs on {real}.")
    return Runtime(session, provider)


def node_placement(path: Path, provider: str, feed: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """How many nodes of a file run on each provider, by ONNX Runtime's profile of one run; what was asked for comes first.

    A session that has the provider may still hand single nodes to the CPU, with a copy before and after each.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = _session(str(path), provider, SessionSettings(), str(Path(folder) / "profile"))
        session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    short = {name: key for key, name in PROVIDERS.items()}
    placed = {
        event["args"]["node_index"]: event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    counts = Counter(short.get(name, name) for name in placed.values())
    return {provider: counts.pop(provider, 0), **dict(sorted(counts.items()))}


def failure(error: Exception) -> str:
    """The first line of what a library said, in brief."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:FAILURE_CHARACTERS]


def _session(model: bytes | str, provider: str, settings: SessionSettings | None = None, profile: str = "") -> Any:
    settings = settings or SessionSettings()
    onnxruntime = runtime_library()
    if provider in ON_GPU:
        _preload(provider)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = settings.threads
    # Idle threads of one session must not spin beside another that is being timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    chosen = _providers(provider, model, settings)
    # Without this a provider that fails is replaced by the CPU, with a line on the terminal.
    return onnxruntime.InferenceSession(model, options, providers=chosen, enable_fallback=0)


def _providers(provider: str, model: bytes | str, settings: SessionSettings) -> list[Any]:
    """Providers in order with their options."""
    cuda, graphs = PROVIDERS["cuda"], {"enable_cuda_graph": "1"} if settings.cuda_graphs else {}
    if provider == "cuda":
        return [(cuda, {**CUDA_OPTIONS, **graphs})]
    if provider == "tensorrt":
        half, quantised = _held(model)
        chosen = {"trt_fp16_enable": half, "trt_int8_enable": quantised, "trt_cuda_graph_enable": settings.cuda_graphs}
        return [(PROVIDERS["tensorrt"], {name: str(value) for name, value in chosen.items()}), (cuda, CUDA_OPTIONS)]
    return [PROVIDERS[provider]]


def _held(model: bytes | str) -> tuple[bool, bool]:
    """Whether a file holds float16 weights, and quantised tensors: TensorRT must be told before it may use such kernels."""
    import onnx

    proto = onnx.load(model, load_external_data=False) if isinstance(model, str) else onnx.load_from_string(model)
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in proto.graph.initializer)
    return half, any(node.op_type == "QuantizeLinear" for node in proto.graph.node)


@functools.cache
def runtime_library() -> Any:
    """onnxruntime, its own chatter kept off the terminal."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


@functools.cache
def _preload(provider: str) -> None:
    """Load the libraries of CUDA and TensorRT from the packages that brought them, where ONNX Runtime does not look itself."""
    import torch

    onnxruntime = runtime_library()
    if torch.cuda.is_available() and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    if provider == "tensorrt":
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt_libs")  # loads them as it is imported


def runtime_packages() -> dict[str, str]:
    """The onnxruntime packages that are installed, with their versions; two of them overwrite each other's files."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _refuse_both_packages() -> None:
    found = runtime_packages()
    if len(found) > 1:
        raise MachineError(
            f"{' and '.join(found)} are installed, and together they lose providers: each overwrites the other's files. "
            f"Run `pip uninstall {' '.join(found)}`, then install secateur again."
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
