"""Convert an exported float32 file to float16 or int8.

Both keep float32 inputs and outputs and the free batch size, so the files are interchangeable.

float16: weights and arithmetic, by ONNX Runtime's converter; values beyond float16's range are refused, not clipped.

int8: static quantisation in QDQ form by ONNX Runtime's quantiser. Weights are symmetric with one scale per kernel; the ranges
of activations are their minimum and maximum on calibration images. Two choices are not the quantiser's defaults. Weights are
limited to 7 bits: processors without VNNI add pairs of 8-bit products in 16 bits, which saturates (a loss of 3 points on the
digits), and a file should predict the same classes everywhere. Activations are uint8 on the CPU, as its kernels expect, and
symmetric int8 for CUDA and TensorRT, which accept nothing else.
"""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.errors import InputError
from ...common.files import replacing, sha256_file
from ...network.evaluation import predict
from ...network.images.images import Images
from ...network.network import Network
from ..runtime.classifier import read_classifier
from ..runtime.providers import ON_GPU
from ..runtime.session import open_session
from .model import forget_origin, read_metadata

CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Agreement:
    """A file compared with torch in float32 on the same images: the largest difference of class scores over the largest
    |score|, and the share of images that both assign to the same class.
    """

    max_relative_difference: float
    top1_agreement: float
    images: int


@dataclass(frozen=True)
class PrecisionFile:
    """An exported file: ``path``, its ``precision``, size and hash, and its agreement with torch in float32."""

    path: Path
    precision: str
    onnx_bytes: int
    sha256: str
    agreement: Agreement

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": self.path.name}

    @classmethod
    def from_json(cls, values: dict[str, Any], folder: Path) -> "PrecisionFile":
        """The inverse of :meth:`to_json`, for a file in ``folder``."""
        return cls(**{**values, "path": folder / values["path"], "agreement": Agreement(**values["agreement"])})


def file_name(fp32: str, precision: str) -> str:
    """``model.onnx`` becomes ``model-int8.onnx``; fp32 keeps the name."""
    return fp32 if precision == "fp32" else f"{fp32.removesuffix('.onnx')}-{precision}.onnx"


def to_precision(source: Path, path: Path, precision: str, calibration: Images, provider: str = "cpu") -> None:
    """Convert a float32 file to another precision; equal files and images give equal bytes, without paths of this machine.

    Args:
        precision: fp16 or int8.
        calibration: the images for int8's ranges; never those that accuracy is measured on.
        provider: the execution provider that the file is for.

    Raises:
        InputError: a weight does not fit float16, or ONNX Runtime cannot convert the file.
    """
    import onnx

    try:
        with _quiet():
            model = _half(source) if precision == "fp16" else _quantised(source, calibration, provider in ON_GPU)
        onnx.checker.check_model(model, full_check=True)
    except InputError:
        raise
    except Exception as error:  # both converters raise many exception types, and may write an invalid model
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise InputError(
            f"ONNX Runtime cannot write {source.name} as {precision}: {reason}. Leave {precision} out of --precision."
        ) from error
    _tidy(model, {**read_metadata(source), "precision": precision})
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(
                f"{source.name} as {precision} holds NaN or infinity in {tensor.name!r}, so it was not written. Leave "
                f"{precision} out of --precision."
            )
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def describe(path: Path, precision: str, network: Network, images: Images) -> PrecisionFile:
    """Size, hash and agreement of an existing file, on images in batches of two sizes."""
    return PrecisionFile(
        path, precision, path.stat().st_size, sha256_file(path), measure_agreement(network, path, images)
    )


def measure_agreement(network: Network, path: Path, images: Images) -> Agreement:
    """Compare a file on the CPU with torch on real images, since noise would lie outside the calibrated ranges of int8.

    Raises:
        InputError: the file gives NaN or infinity.
    """
    expected = predict(network.logits, images).numpy()
    classifier, session = read_classifier(path), open_session(path, "cpu").session
    found = np.concatenate([classifier.run(session, batch.numpy()) for batch, _ in images.batches(48)])
    if not np.isfinite(found).all():
        raise InputError(f"{path.name} gives NaN or infinity for {int((~np.isfinite(found)).any(1).sum())} images.")
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
    return Agreement(difference, float((found.argmax(1) == expected.argmax(1)).mean()), len(images))


def _tidy(model: Any, about: dict[str, Any]) -> None:
    """Remove paths, list only the operator sets that are used (the quantiser lists all it knows), and set the metadata."""
    import onnx

    forget_origin(model)
    used = {node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
    onnx.helper.set_model_props(model, {"secateur": json.dumps(about, sort_keys=True)})


def _half(source: Path) -> Any:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    largest = float(np.finfo(np.float16).max)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size and np.abs(values).max() > largest:
            raise InputError(
                f"{source.name}: {tensor.name!r} holds {np.abs(values).max():.3g}, beyond float16's {largest:.0f}. "
                "Leave fp16 out of --precision."
            )
    model = convert_float_to_float16(model, keep_io_types=True)
    _keep_once(model.graph)
    _sort(model.graph)
    return model


def _keep_once(graph: Any) -> None:
    """Keep one cast of a value that several nodes read in float32: the converter adds one per node, all under the same name."""
    for entries in (graph.node, graph.value_info):
        different = {entry.SerializeToString(deterministic=True): entry for entry in entries}
        kept = list(different.values())
        del entries[:]
        entries.extend(kept)


def _sort(graph: Any) -> None:
    """Sort the nodes topologically, since the converter appends its casts at the end."""
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output}
    nodes = list(graph.node)
    reads = {index: [made_by[name] for name in node.input if name in made_by] for index, node in enumerate(nodes)}
    del graph.node[:]
    graph.node.extend(nodes[index] for index in TopologicalSorter(reads).static_order())


def _quantised(source: Path, calibration: Images, symmetric: bool) -> Any:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        # The symbolic inference needs sympy and targets transformers; onnx's own infers the shapes of convolutional networks.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(written),
            _reader(source, calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
        )
        return onnx.load(written)


def _reader(source: Path, calibration: Images) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    classifier = read_classifier(source)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = (classifier.feed(batch.numpy()) for batch, _ in calibration.batches(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.batches, None)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converters, which write irrelevant hints to the root logger and to the terminal."""
    level = logging.getLogger().manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            yield
    finally:
        logging.disable(level)
