"""What a network returns: one tensor, or several in a tuple, list, mapping, dataclass or object."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor


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
        for name, value in _entries(output)
        for inner, tensor in tensors_in(value).items()
    }


def _entries(output: object) -> list[tuple[str, object]]:
    """Names and values of what is directly inside."""
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if isinstance(output, tuple | list):
        return list(zip(getattr(output, "_fields", map(str, range(len(output)))), output, strict=True))
    if is_dataclass(output):
        return [(field.name, getattr(output, field.name)) for field in fields(output)]
    return [(name, value) for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)]
