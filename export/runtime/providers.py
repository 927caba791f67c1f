"""The providers by their short names, and the onnxruntime package that brings them."""

import contextlib
import functools
from dataclasses import dataclass
from importlib import metadata
from typing import Any

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
ON_GPU = ("cuda", "tensorrt")
FAILURE_CHARACTERS = 200
"""The most characters of a provider's message that are quoted."""


@dataclass(frozen=True)
class CudaOptions:
    """Options of the CUDA provider; all files of a comparison have the same search and layout, so that they are timed alike.

    ``conv_search``: how cuDNN chooses the algorithm of a convolution. ``channels_last``: NHWC, the layout of tensor cores.
    ``fused_biases``: bias, addition and ReLU in the kernel of their convolution; not every file runs with it, see
    :mod:`~secateur.export.measure.fused_biases`.
    """

    conv_search: str = "EXHAUSTIVE"
    channels_last: bool = True
    fused_biases: bool = False

    def to_dict(self) -> dict[str, str]:
        """The options by ONNX Runtime's names; an option that is off by default is left out, since old versions reject it."""
        fused = {"fuse_conv_bias": "1"} if self.fused_biases else {}
        return {"cudnn_conv_algo_search": self.conv_search, "prefer_nhwc": str(int(self.channels_last)), **fused}


CUDA_DEFAULTS = CudaOptions()


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
