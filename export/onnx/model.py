"""Export a network to a checked ONNX file, and measure its parity with torch."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common.checks import check_one_of
from ...common.environment import installed_packages
from ...common.errors import InputError, SecateurError
from ...common.files import replacing, sha256_file
from ...network.hooks import pick_logits
from ...network.network import Network
from ..runtime.session import open_session
from ..settings import INPUT_TYPES
from .cleaning.clean import clean_graph
from .padding import keep_padding_apart
from .pixels import take_pixels

INPUT_NAME, OUTPUT_NAME = "images", "logits"
_CHATTERERS = ("torch.onnx", "torch.fx", "torch._dynamo", "torch.export", "onnxscript", "onnx_ir")
PARITY_BATCHES = (1, 3, 8)
PARITY_LIMIT = 1e-3
"""Above this the file counts as wrong. Typical networks stay near 1e-6; ill-conditioned ones reach 1e-4."""
ROUNDINGS = 10.0
"""A file is as good as torch where they differ by at most so many times torch's own error of rounding."""


@dataclass(frozen=True)
class Parity:
    """Largest difference between the ONNX file's class scores and torch's, over the largest |score|, at each batch size.

    ``rounding`` is that of torch's own scores in float32 and in float64, on the same noise. It is measured where the file's
    difference is above the limit; otherwise it is 0.
    """

    max_relative_difference: float
    batch_sizes: tuple[int, ...]
    rounding: float = 0.0

    def note(self) -> str:
        """A warning of scores that rounding changes; empty if it does not."""
        if not self.rounding:
            return ""
        return (
            f"The class scores of noise images depend on rounding: torch's own differ by {self.rounding:.1e} between float32 "
            f"and float64, the ONNX file's from torch's by {self.max_relative_difference:.1e}. The network is unstable for "
            "images unlike those that it was repaired with."
        )


@dataclass(frozen=True)
class OnnxModel:
    """An exported file: ``path``, its actual ``opset``, size, hash and parity."""

    path: Path
    opset: int
    onnx_bytes: int
    sha256: str
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": self.path.name, "parity": asdict(self.parity)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], folder: Path) -> "OnnxModel":
        """The inverse of :meth:`to_json`, for a file in ``folder``."""
        known = values["parity"]
        parity = Parity(known["max_relative_difference"], tuple(known["batch_sizes"]), known["rounding"])
        return cls(**{**values, "path": folder / values["path"], "parity": parity})


class _Logits(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return pick_logits(self.module(images))


def export_onnx(
    network: Network,
    path: Path,
    about: Mapping[str, Any] | None = None,
    *,
    input_type: str = "float32",
    clean: bool = True,
    as_exported: Path | None = None,
) -> OnnxModel:
    """Write the network as one ONNX file with a free batch size, check it, and compare it with torch.

    The input ``images`` is ``[batch, C, H, W]``: float32, normalised as the metadata describe, or uint8, pixels in 0 to 255
    that the file normalises. The output ``logits`` is ``[batch, classes]``. The file contains no path of this machine, and
    equal networks give equal bytes.

    Args:
        about: what was done to the network, for the file's metadata, as plain values.
        input_type: float32 or uint8.
        clean: remove what torch and a cut leave in the graph (see :mod:`~secateur.export.onnx.cleaning`). The outputs are equal
            up to rounding, and the file is faster where a branch was removed or a shortcut pads channels. False leaves the
            graph as torch exports it.
        as_exported: where to write the graph that is not clean, too, if cleaning changes it; its outputs are not compared.

    Raises:
        InputError: torch cannot export the network, or its weights are not finite.
        SecateurError: the file's results differ from torch's.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> from pathlib import Path
        >>> exported = secateur.export_onnx(network, Path("digits.onnx"))
        >>> exported.parity.max_relative_difference < 1e-4, exported.parity.batch_sizes
        (True, (1, 3, 8))
    """
    import onnx

    check_one_of("input_type", input_type, INPUT_TYPES)
    plain = _to_proto(network)
    metadata = {**_described(network), "input_type": input_type, **(about or {})}
    model = _finished(plain, network, metadata, clean=clean)
    if as_exported is not None and (other := _finished(plain, network, metadata, clean=False)) != model:
        with replacing(as_exported) as temporary:
            temporary.write_bytes(other.SerializeToString(deterministic=True))
    onnx.checker.check_model(model, full_check=True)
    _check_finite(network)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
    parity = measure_parity(network, path, input_type=input_type)
    if not parity.max_relative_difference <= max(PARITY_LIMIT, ROUNDINGS * parity.rounding):  # not a number neither
        raise SecateurError(
            f"{path.name} differs from torch by {parity.max_relative_difference:.2e} of the largest score (more than "
            f"{PARITY_LIMIT:g}). This is a defect; please report the network."
        )
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return OnnxModel(path, opset, path.stat().st_size, sha256_file(path), parity)


def _described(network: Network) -> dict[str, Any]:
    return {
        "secateur_version": installed_packages().get("secateur", "unknown"),
        "input_shape": list(network.input_shape),
        "mean": list(network.preprocessing.mean),
        "std": list(network.preprocessing.std),
        "resize": network.preprocessing.resize,
        "class_names": list(network.class_names),
        "model": Path(network.source.model).name,
        "weights_sha256": network.source.weights_sha256,
    }


def _check_finite(network: Network) -> None:
    for name, tensor in network.module.state_dict().items():
        if tensor.isnan().any() or (tensor.isinf().any() and name not in dict(network.module.named_buffers())):
            raise InputError(
                f"The weights hold NaN or infinity in {name!r}, so the network was not exported. Use finite weights."
            )


def measure_parity(
    network: Network, path: Path, batch_sizes: tuple[int, ...] = PARITY_BATCHES, *, input_type: str = "float32"
) -> Parity:
    """Compare the file on the CPU with torch at several batch sizes, on seeded noise: normal, or random pixels."""
    session = open_session(path, "cpu").session
    worst = 0.0
    for size in batch_sizes:
        given, images = _noise(network, size, input_type)
        with torch.no_grad():
            expected = network.logits(images).numpy()
        (found,) = session.run([OUTPUT_NAME], {INPUT_NAME: given.numpy()})
        if found.shape != expected.shape:
            raise SecateurError(f"{path.name} gives {found.shape} for {size} images, torch {expected.shape}. A defect.")
        worst = float(np.maximum(worst, _relative_difference(found, expected)))  # keeps what is not a number
    return Parity(worst, batch_sizes, _rounding(network, batch_sizes, input_type) if worst > PARITY_LIMIT else 0.0)


def _noise(network: Network, size: int, input_type: str) -> tuple[Tensor, Tensor]:
    """Seeded noise as the file takes it, and as torch does."""
    if input_type == "float32":
        images = network.example(size, seed=size)
        return images, images
    generator = torch.Generator().manual_seed(size)
    pixels = torch.randint(256, (size, *network.input_shape), generator=generator).to(torch.uint8)
    return pixels, network.preprocessing.normalise(pixels)


def _rounding(network: Network, batch_sizes: tuple[int, ...], input_type: str) -> float:
    """The relative difference of class scores in float32 and in float64; 0 where the network knows float32 only."""
    exact, worst = network.copy().module.double(), 0.0
    for size in batch_sizes:
        _, images = _noise(network, size, input_type)
        with torch.no_grad():
            try:
                expected = pick_logits(exact(images.double())).numpy()
            except Exception:  # a user's forward may name a type
                return 0.0
            worst = max(worst, _relative_difference(network.logits(images).numpy(), expected))
    return worst


def _relative_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that secateur wrote into an ONNX file; empty for other files."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own exception types
        raise InputError(
            f"{path} is not an ONNX file, or is damaged ({type(error).__name__}). Export it again."
        ) from error
    found = {entry.key: entry.value for entry in model.metadata_props}
    return dict(json.loads(found["secateur"])) if "secateur" in found else {}


def _finished(plain: Any, network: Network, metadata: Mapping[str, Any], *, clean: bool) -> Any:
    """The file of a graph that torch exported, which is left as it is."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(plain)
    if clean:
        clean_graph(model)
    keep_padding_apart(model)
    forget_origin(model)
    if metadata["input_type"] == "uint8":
        take_pixels(model, network.preprocessing)
    onnx.helper.set_model_props(model, {"secateur": json.dumps(metadata, sort_keys=True)})
    return model


def _to_proto(network: Network) -> Any:
    wrapped = _Logits(network.copy().module).eval()
    try:
        with (
            warnings.catch_warnings(),
            _quiet(*_CHATTERERS),
        ):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(io.StringIO()):
                program = torch.onnx.export(
                    wrapped,
                    (network.example(2),),
                    input_names=[INPUT_NAME],
                    output_names=[OUTPUT_NAME],
                    dynamic_shapes=({0: "batch"},),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
    except Exception as error:  # torch.export raises many exception types for what it cannot capture
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InputError(f"torch cannot export this network to ONNX: {reason}") from error
    assert program is not None
    return program.model_proto


def forget_origin(model: Any) -> None:
    """Remove stack traces and doc strings, which contain paths of the exporting machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        for item in _with_metadata(graph):
            del item.metadata_props[:]
            item.doc_string = ""
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    for function in model.functions:
        function.doc_string = ""
        for item in [function, *function.node]:
            del item.metadata_props[:]
            item.doc_string = ""


def _with_metadata(graph: Any) -> Iterable[Any]:
    del graph.metadata_props[:]
    return [*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]


@contextlib.contextmanager
def _quiet(*names: str) -> Any:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
