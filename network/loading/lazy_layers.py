"""Lazy layers (``nn.LazyConv2d``, ``nn.LazyLinear``, ``nn.LazyBatchNorm2d``, …): shaped by one forward pass."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from ...common.errors import InputError, first_line


def without_shape(module: nn.Module) -> list[str]:
    """The layers whose parameters or buffers have no shape yet, as ``name (type)``."""
    return [
        f"{name} ({type(child).__name__})" if name else type(child).__name__
        for name, child in module.named_modules()
        if any(is_lazy(tensor) for tensor in (*child.parameters(recurse=False), *child.buffers(recurse=False)))
    ]


def shape_lazy_layers(module: nn.Module, example: Tensor) -> bool:
    """Make the lazy layers of a module usual ones, in place; a checkpoint gives their values afterwards.

    The module runs once in evaluation mode, and again in training mode if layers are left that only training calls.

    Args:
        example: input of the network's shape.

    Returns:
        Whether there was a lazy layer.

    Raises:
        InputError: the module fails on the example, or never calls a lazy layer.
    """
    lazy = [child for child in module.modules() if isinstance(child, LazyModuleMixin)]
    if not lazy:
        return False
    for training in (False, True):
        if training and not without_shape(module):
            break
        module.train(training)
        try:
            with torch.no_grad():
                module(example)
        except Exception as error:  # a user's forward may raise anything
            shape = "x".join(map(str, example.shape[1:]))
            raise InputError(
                f"The model has lazy layers and fails on an input of {shape} (channels x height x width), which would give "
                f"them their shapes: {first_line(error)}. Pass the right shape with --input-shape."
            ) from error
        finally:
            module.eval()
    if left := without_shape(module):
        raise InputError(
            f"The lazy layers {listed(left)} are never called, so they have no shape. Take them out of the model."
        )
    for layer in lazy:
        assert isinstance(layer, nn.Module)
        _set_sizes(layer)
    return True


def listed(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _set_sizes(layer: nn.Module) -> None:
    """Set the sizes that torch leaves at zero where a state dict was loaded before the first call."""
    if isinstance(layer, _ConvTransposeNd):
        layer.in_channels = layer.weight.shape[0]
    elif isinstance(layer, _ConvNd):
        layer.in_channels = layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.in_features = layer.weight.shape[1]
    elif isinstance(layer, _NormBase):
        sized = layer.weight if layer.weight is not None else layer.running_mean
        if sized is not None:
            layer.num_features = sized.shape[0]
