"""Checkpoints: read without running code, and loaded into a module that they must fit."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import InputError, first_line
from .head import head_name

LARGEST_CHECKPOINT_BYTES = 16 * 2**30
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception that only training reads


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a torch checkpoint, by parameter name, on the CPU.

    Torch files are read with ``weights_only=True``, so that nothing in them is executed. Wrappers (``state_dict``,
    ``model``) are unwrapped and ``module.`` prefixes removed.

    Raises:
        InputError: the file is missing, empty, truncated, a git-LFS pointer, a TorchScript archive, a pickled module, a
            compressed archive, or holds no tensors.
    """
    _refuse_what_is_no_checkpoint(path)
    with path.open("rb") as file:
        head = file.read(16)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _without_prefixes(_read_safetensors(path), path)
    if zipfile.is_zipfile(path):
        _check_archive(path)
    elif head[:2] == b"PK":
        raise InputError(f"The weights {path} are a truncated archive: the end is missing. Copy the file again.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise InputError(
                f"The weights {path} hold pickled Python objects (a whole module?), which could run code and are not loaded. "
                "Save the weights alone: torch.save(model.state_dict(), FILE), or as safetensors."
            ) from error
        raise InputError(
            f"The weights {path} are not a torch checkpoint, or are corrupt ({first_line(error)}). Save them "
            "again with torch.save(model.state_dict(), FILE)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise InputError(
            f"The weights {path} are truncated, corrupt, or not a checkpoint ({first_line(error)}). Copy the file again."
        ) from error
    return _without_prefixes(_unwrap(found, path), path)


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load a checkpoint's tensors into a module, in place.

    A bias that the checkpoint has and the module's layer lacks (as a repair may add one) is created; auxiliary heads that
    the module lacks are left out.

    Args:
        what: the checkpoint as messages name it, its path.

    Raises:
        InputError: tensors are missing, unexpected, complex, or of another shape.
    """
    _create_biases(module, tensors)
    own = module.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if name in own or not name.startswith(_AUXILIARY)}
    _check_names(own, tensors, what)
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, own[name], head_name(module), what)
    loaded = OrderedDict(tensors)
    loaded._metadata = own._metadata  # type: ignore[attr-defined]  # versions of layers, without which MNASNet's code fails
    module.load_state_dict(loaded, strict=False)


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    if not path.exists():
        raise InputError(f"The weights {path} do not exist.")
    if path.is_dir():
        raise InputError(f"The weights {path} are a folder; expected a safetensors file or a torch checkpoint.")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"The weights {path} are empty (0 bytes). Copy the file again.")
    if size > LARGEST_CHECKPOINT_BYTES:
        raise InputError(
            f"The weights {path} have {size / 2**30:.0f} GiB; at most 16 GiB are read. Save the weights alone."
        )
    with path.open("rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise InputError(f"{path} is a git-LFS pointer, not the weights. Run `git lfs pull` to fetch them.")


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise InputError(
            f"The weights {path} are a TorchScript archive. Save the weights alone: torch.save(model.state_dict(), FILE)."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(
            f"The weights {path} are a compressed archive, which torch does not write and which could unpack to any size. "
            "Save them again with torch.save."
        )
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise InputError(
            f"The weights {path} are a zip archive, but not one that torch.save wrote. Save them again with it."
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"The weights {path} are truncated or not a safetensors file ({first_line(error)}). Copy the file again."
        ) from error


def _unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(found, dict):
            break
        if found and all(isinstance(value, Tensor) for value in found.values()):
            return dict(found)
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = inner
    keys = f" with the keys {', '.join(map(str, list(found)[:5]))}" if isinstance(found, dict) else ""
    raise InputError(
        f"The weights {path} hold a {type(found).__name__}{keys}, not tensors by parameter name. "
        "Save them with torch.save(model.state_dict(), FILE)."
    )


def _without_prefixes(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not tensors:
        raise InputError(f"The weights {path} hold no tensors. Save them with torch.save(model.state_dict(), FILE).")
    while prefix := next((start for start in _PREFIXES if all(name.startswith(start) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _create_biases(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = module.state_dict()
    for name in set(tensors) - set(own):
        layer, _, leaf = name.rpartition(".")
        if leaf == "bias" and f"{layer}.weight" in own and module.get_submodule(layer).bias is None:
            module.get_submodule(layer).register_parameter("bias", nn.Parameter(tensors[name].clone()))


def _check_names(own: dict[str, Tensor], tensors: dict[str, Tensor], what: str) -> None:
    missing = sorted(name for name in own if name not in tensors and not name.endswith("num_batches_tracked"))
    extra = sorted(set(tensors) - set(own))
    if not missing and not extra:
        return
    parts = [
        f"{label} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in (("the file lacks", missing), ("the model lacks", extra))
        if names
    ]
    raise InputError(f"The weights {what} do not fit the model: {'; '.join(parts)}. Use weights of this model.")


def _check_tensor(name: str, tensor: Tensor, own: Tensor, head: str | None, what: str) -> None:
    if tensor.is_complex():
        raise InputError(f"The weights {what} hold complex numbers in {name!r}; only real ones are supported.")
    if tensor.shape != own.shape:
        there, here = ("x".join(map(str, shape)) or "1" for shape in (tensor.shape, own.shape))
        counts_differ = head and name.startswith(f"{head}.") and tensor.shape[:1] != own.shape[:1]
        note = " This is the head: the class counts differ." if counts_differ else ""
        raise InputError(f"The weights {what} do not fit: {name} is {there} in the file, {here} in the model.{note}")
