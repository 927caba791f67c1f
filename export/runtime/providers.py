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
"""One convolution search for every session, so that two files are timed alike, and channels last, as tensor cores take them."""
FAILURE_CHARACTERS = 200
"""How much of a provider's own message is quoted."""


@functools.cache
def runtime_library() -> Any:
    """onnxruntime, its own chatter kept off the terminal."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def runtime_packages() -> dict[str, str]:
    """The onnxruntime packages that are installed, with their versions; two of them overwrite each other's files."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def failure(error: Exception) -> str:
    """The first line of what a library said, in brief."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:FAILURE_CHARACTERS]
