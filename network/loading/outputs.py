"""What a network returns: one tensor, or several in a tuple, list, mapping, dataclass or object."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor

LOGITS = ("logits", "out")
"""Names of class scores among several outputs, as transformers and torchvision's segmentation models give them."""


def tensors_in(output: object) -> dict[str, Tensor]:
    """The tensors in what a network returned, by name: ``""`` for a tensor alone, else index, key or field, with dots inside.

    Examples:
        >>> import torch
        >>> list(tensors_in({"logits": torch.zeros(2, 3), "maps": [torch.zeros(2, 4), torch.zeros(2, 5)]}))
        ['logits', 'maps.0', 'maps.1']
    """
    if isinstance(output, Tensor):
        return {"": output}
    return {
        f"{name}.{inner}" if inner else name: tensor
        for name, value in entries(output)
        for inner, tensor in tensors_in(value).items()
    }


def scores_in(output: object) -> dict[str, Tensor]:
    """The tensors that may be class scores: of shape ``[n, classes]`` or ``[n, classes, 1, 1]``."""
    return {name: each for name, each in tensors_in(output).items() if each.dim() == 2 or _is_map_of_scores(each)}


def logits_name(output: object) -> str | None:
    """The name of the class scores, by which ``tensors_in`` has them; None if nothing has their shape.

    They are an entry ``logits`` or ``out``, else the first of their shape, which covers torchvision's auxiliary outputs.
    """
    found = scores_in(output)
    return next((name for name in LOGITS if name in found), next(iter(found), None))


def logits_in(output: object) -> Tensor | None:
    """The class scores ``[n, classes]`` in what a network returned; None if nothing has their shape."""
    name = logits_name(output)
    return None if name is None else tensors_in(output)[name].flatten(1)


def _is_map_of_scores(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.shape[2:] == (1, 1)


def entries(output: object) -> list[tuple[str, object]]:
    """Names and values of what is directly inside."""
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if isinstance(output, tuple | list):
        return list(zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True))
    if is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in fields(output)]
    return [(name, value) for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)]
