"""ONNX Runtime sessions that run on the requested provider or raise."""

import contextlib
import functools
import importlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...common.errors import InputError, MachineError, UsageError
from .providers import CUDA_DEFAULTS, ON_GPU, PROVIDERS, CudaOptions, failure, runtime_library


@dataclass(frozen=True)
class Runtime:
    """A session and the provider that it actually runs on, by its short name in ``PROVIDERS``."""

    session: Any
    provider: str


@dataclass(frozen=True)
class SessionSettings:
    """How a session runs. ``threads``: of one operator on the CPU, 0 for ONNX Runtime's own choice.

    ``cuda_graphs``: the kernels of a run are recorded once and replayed. This needs CUDA or TensorRT, a fixed batch size and
    fixed addresses of inputs and outputs, so such a session runs only through bound buffers. ``cuda``: that provider's options.
    """

    threads: int = 0
    cuda_graphs: bool = False
    cuda: CudaOptions = CUDA_DEFAULTS


def open_session(path: Path, provider: str = "cpu", settings: SessionSettings | None = None) -> Runtime:
    """Open an ONNX file on a provider; external weights next to it are loaded.

    Raises:
        InputError: the file does not exist or is not an ONNX model.
        MachineError: the session runs on another provider than requested.
        UsageError: CUDA graphs are requested on a provider without them.
    """
    settings = settings or SessionSettings()
    if settings.cuda_graphs and provider not in ON_GPU:
        raise UsageError(f"CUDA graphs need the provider cuda or tensorrt (got {provider}).")
    if not path.is_file():
        raise InputError(f"The ONNX file {path} does not exist.")
    try:
        session = start_session(str(path), provider, settings)
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise InputError(f"ONNX Runtime cannot open {path}: {failure(error)}") from error
    real = session.get_providers()[0]
    if real != PROVIDERS[provider]:
        raise MachineError(
            f"{path.name} was requested to run on {provider}, but its session runs on {real}. Run `secateur doctor` to see why."
        )
    return Runtime(session, provider)


def node_placement(path: Path, provider: str, feed: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """The number of nodes of a file on each provider, by ONNX Runtime's profile of one run; the requested provider comes first.

    A session on a provider may still run single nodes on the CPU, with a copy before and after each.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = start_session(str(path), provider, SessionSettings(), str(Path(folder) / "profile"))
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


def start_session(model: bytes | str, provider: str, settings: SessionSettings | None = None, profile: str = "") -> Any:
    """An ``InferenceSession`` of a model, given as its bytes or its path; ``profile`` is the prefix of a profile's file.

    The caller must check which provider it actually runs on; errors are onnxruntime's own.
    """
    settings = settings or SessionSettings()
    onnxruntime = runtime_library()
    if provider in ON_GPU:
        _preload(provider)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = settings.threads
    # Idle threads of one session must not spin while another is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    chosen = _providers(provider, model, settings)
    # Without this, a failing provider is replaced by the CPU with only a line on the terminal.
    return onnxruntime.InferenceSession(model, options, providers=chosen, enable_fallback=0)


def _providers(provider: str, model: bytes | str, settings: SessionSettings) -> list[Any]:
    """Providers in order with their options."""
    cuda, graphs = PROVIDERS["cuda"], {"enable_cuda_graph": "1"} if settings.cuda_graphs else {}
    if provider == "cuda":
        return [(cuda, {**settings.cuda.to_dict(), **graphs})]
    if provider == "tensorrt":
        half, quantised = _held(model)
        chosen = {"trt_fp16_enable": half, "trt_int8_enable": quantised, "trt_cuda_graph_enable": settings.cuda_graphs}
        options = {name: str(value) for name, value in chosen.items()}
        return [(PROVIDERS["tensorrt"], options), (cuda, settings.cuda.to_dict())]
    return [PROVIDERS[provider]]


def _held(model: bytes | str) -> tuple[bool, bool]:
    """Whether a file holds float16 weights, and quantised tensors: TensorRT needs options to use such kernels."""
    import onnx

    proto = onnx.load(model, load_external_data=False) if isinstance(model, str) else onnx.load_from_string(model)
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in proto.graph.initializer)
    return half, any(node.op_type == "QuantizeLinear" for node in proto.graph.node)


@functools.cache
def _preload(provider: str) -> None:
    """Load the libraries of CUDA and TensorRT from their Python packages, where ONNX Runtime does not look."""
    import torch

    onnxruntime = runtime_library()
    if torch.cuda.is_available() and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    if provider == "tensorrt":
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt_libs")  # importing it loads them
