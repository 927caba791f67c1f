"""The providers by their short names, and the onnxruntime package that brings them."""

import contextlib
import functools
from importlib import metadata
from typing import Any

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
ON_GPU = ("cuda", "tensorrt")
CUDA_OPTIONS = {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": "1"}
"""The same convolution search for every session, so that two files are timed alike, and channels last for tensor cores."""
FAILURE_CHARACTERS = 200
"""The most characters of a provider's message that are quoted."""


@functools.cache
def runtime_library() -> Any:
    """onnxruntime, with its log messages kept off the terminal."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def runtime_packages() -> dict[str, str]:
    """The installed onnxruntime packages with their versions; two of them overwrite each other's files."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def failure(error: Exception) -> str:
    """The first line of a library's error message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:FAILURE_CHARACTERS]
