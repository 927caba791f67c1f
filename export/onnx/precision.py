"""Convert an exported float32 file to float16 or int8.

Both keep the input's type, float32 outputs and the free batch size, so the files are interchangeable.

float16: weights and arithmetic, by ONNX Runtime's converter; values beyond float16's range are refused, not clipped.
Operations that have no float16 form stay in float32.

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
from .pixels import PREFIX

CALIBRATION_BATCH = 32
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PLAIN = ("BatchNormalization", "Relu", "LeakyRelu", "Sigmoid", "Clip", "Add", "Mul", "MaxPool", "AveragePool")
_SHAPING = ("GlobalAveragePool", "Concat", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
_SURE = frozenset((*_WITH_WEIGHTS, *_PLAIN, *_SHAPING))
"""Operations that stay in float16 where the whole network cannot; these are nearly all of the arithmetic."""


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

    The file is run on two batch sizes before it takes its place. Where ONNX Runtime's converter makes one that fails, only the
    operations that are sure to work are converted.

    Args:
        precision: fp16 or int8.
        calibration: the images for int8's ranges; never those that accuracy is measured on.
        provider: the execution provider that the file is for.

    Raises:
        InputError: a weight does not fit float16, or ONNX Runtime cannot convert the file.
    """
    import onnx

    about = {**read_metadata(source), "precision": precision}
    if precision == "fp16":
        _check_range(onnx.load(source), source.name)
    failures = []
    for carefully in (False, True):
        try:
            with _quiet():
                if precision == "fp16":
                    model = _half(source, carefully)
                else:
                    model = _quantised(source, calibration, provider in ON_GPU, carefully)
            onnx.checker.check_model(model, full_check=True)
            _tidy(model, about)
            with replacing(path) as temporary:
                temporary.write_bytes(model.SerializeToString(deterministic=True))
                _try_out(temporary, calibration)
            return
        except Exception as error:  # both converters raise many exception types, and may write an invalid model
            failures.append(error)
    first = failures[0]
    reason = (str(first).strip().splitlines() or [type(first).__name__])[0][:300].rstrip(".")
    raise InputError(
        f"ONNX Runtime cannot write {source.name} as {precision}: {reason}. Leave {precision} out of --precision."
    ) from first


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
    found = np.concatenate([classifier.run(session, batch) for batch in classifier.batches(images, 48)])
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


def _try_out(path: Path, calibration: Images) -> None:
    """Run a file on the CPU on two batch sizes: what the checker accepts may still have no kernel, or overflow."""
    import onnx

    for tensor in onnx.load(path).graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"it holds NaN or infinity in {tensor.name!r}")
    try:
        classifier, session = read_classifier(path), open_session(path, "cpu").session
        found = [
            classifier.run(session, next(classifier.batches(calibration.subset(torch.arange(count)), count)))
            for count in (1, min(8, len(calibration)))
        ]
    except InputError as error:  # the name is that of a temporary file
        raise ValueError(str(error).replace(str(path), "the file")) from error
    if not all(np.isfinite(scores).all() for scores in found):
        raise ValueError("its class scores are NaN or infinite")


def _check_range(model: Any, name: str) -> None:
    import onnx

    largest = float(np.finfo(np.float16).max)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size and np.abs(values).max() > largest:
            raise InputError(
                f"{name}: {tensor.name!r} holds {np.abs(values).max():.3g}, beyond float16's {largest:.0f}. "
                "Leave fp16 out of --precision."
            )


def _half(source: Path, carefully: bool) -> Any:
    """Convert to float16; ``carefully``, only the operations that every converter and runtime knows in it."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(source)
    # The converter changes the type that a float32 constant is declared with (the scales of Resize), but not the constant.
    constants = {tensor.name for tensor in model.graph.initializer}
    for info in [info for info in model.graph.value_info if info.name in constants]:
        model.graph.value_info.remove(info)
    used = {node.op_type for node in model.graph.node}
    kept = used - _SURE if carefully else {*DEFAULT_OP_BLOCK_LIST, *_without_half(model)}
    model = convert_float_to_float16(model, keep_io_types=True, op_block_list=sorted(kept))
    _keep_once(model.graph)
    _sort(model.graph)
    return model


def _without_half(model: Any) -> set[str]:
    """The operations that take or give float32 but no float16 in the model's operator set (Celu)."""
    import onnx

    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    found = set()
    for node in model.graph.node:
        if node.domain or not onnx.defs.has(node.op_type, version):
            continue
        schema = onnx.defs.get_schema(node.op_type, version)
        kinds = [set(constraint.allowed_type_strs) for constraint in schema.type_constraints]
        if any("tensor(float)" in allowed and "tensor(float16)" not in allowed for allowed in kinds):
            found.add(node.op_type)
    return found


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


def _quantised(source: Path, calibration: Images, symmetric: bool, carefully: bool) -> Any:
    """Quantise to int8; ``carefully``, only the layers with weights."""
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
            op_types_to_quantize=list(_WITH_WEIGHTS) if carefully else None,
            nodes_to_exclude=[node.name for node in onnx.load(prepared).graph.node if node.name.startswith(PREFIX)],
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
            self.batches = (classifier.feed(batch) for batch in classifier.batches(calibration, CALIBRATION_BATCH))

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
