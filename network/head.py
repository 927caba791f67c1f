"""The head of a network: its last layer, whose outputs are the classes."""

from collections.abc import Mapping

from torch import Tensor, nn


def head_name(module: nn.Module) -> str | None:
    """The name of the last linear or convolutional layer in the module's order; None if there is none."""
    layers = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else None


def head_width(module: nn.Module) -> int | None:
    """The number of outputs of the head."""
    head = head_name(module)
    layer = module.get_submodule(head) if head else None
    return int(layer.weight.shape[0]) if isinstance(layer, nn.Linear | nn.Conv2d) else None


def classes_in(module: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """The class count of a checkpoint: the rows of the weight that the architecture's head has."""
    head = head_name(module)
    weight = tensors.get(f"{head}.weight") if head else None
    return None if weight is None else weight.shape[0]
