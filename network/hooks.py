"""Context managers that read or mask parts of a network, and undo all their changes on exit."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import InputError
from .loading.outputs import logits_in, tensors_in


@contextlib.contextmanager
def reading_activations(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of the named submodules, call by call, ready for gradients with respect to them.

    Outputs that do not require gradients are made to, so that parameters may be frozen.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def reader(name: str) -> Callable[[nn.Module, tuple[object, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, _inputs: tuple[object, ...], output: Tensor) -> Tensor:
            if torch.is_grad_enabled() and not output.requires_grad:
                output = output.requires_grad_()
            found[name].append(output)
            return output

        return hook

    with contextlib.ExitStack() as stack:
        for name in found:
            stack.callback(module.get_submodule(name).register_forward_hook(reader(name)).remove)
        yield found


@contextlib.contextmanager
def reading_inputs(module: nn.Module, names: Iterable[str], consume: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Pass the first input of each named submodule to ``consume(name, input)`` at every call."""
    with contextlib.ExitStack() as stack:
        for name in names:

            def hook(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                consume(name, inputs[0])

            stack.callback(module.get_submodule(name).register_forward_pre_hook(hook).remove)
        yield


@contextlib.contextmanager
def masking_inputs(module: nn.Module, masks: dict[str, Tensor]) -> Iterator[None]:
    """Zero input channels of submodules.

    Channels are the last dimension of a linear layer's input, the second of any other.

    Args:
        masks: from a submodule's name to the indices of the channels to zero.
    """
    with contextlib.ExitStack() as stack:
        for name, channels in masks.items():
            submodule = module.get_submodule(name)
            dim = -1 if isinstance(submodule, nn.Linear) else int(getattr(submodule, "dim", 1))

            def hook(
                _module: nn.Module, inputs: tuple[Tensor, ...], channels: Tensor = channels, dim: int = dim
            ) -> tuple[Tensor, ...]:
                return (inputs[0].index_fill(dim, channels.to(inputs[0].device), 0), *inputs[1:])

            stack.callback(submodule.register_forward_pre_hook(hook).remove)
        yield


@contextlib.contextmanager
def masking_outputs(module: nn.Module, masks: dict[str, Tensor]) -> Iterator[None]:
    """Zero output channels of submodules: the last dimension of a linear layer's output, the second of any other's.

    Args:
        masks: from a submodule's name to the indices of the channels to zero.
    """
    with contextlib.ExitStack() as stack:
        for name, channels in masks.items():
            submodule = module.get_submodule(name)
            dim = -1 if isinstance(submodule, nn.Linear) else int(getattr(submodule, "dim", 1))

            def hook(
                _module: nn.Module, _inputs: Any, output: Tensor, channels: Tensor = channels, dim: int = dim
            ) -> Tensor:
                return output.index_fill(dim, channels.to(output.device), 0)

            stack.callback(submodule.register_forward_hook(hook).remove)
        yield


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Put a module in evaluation mode without parameter gradients; modes and flags are restored on exit."""
    modes = [(child, child.training) for child in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield module
    finally:
        for child, training in modes:
            child.training = training
        for parameter, needed in flags:
            parameter.requires_grad_(needed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random numbers on all devices; the generators' states are restored on exit."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def pick_logits(output: object) -> Tensor:
    """The class scores ``[n, classes]`` in what a network returned.

    They are the tensor itself, or what ``logits_name`` finds among several.

    Raises:
        InputError: there is no such tensor.
    """
    found = logits_in(output)
    if found is not None:
        return found
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors_in(output).values())
    raise InputError(
        f"The model returns {shapes or type(output).__name__}; expected class scores of shape images x classes. Wrap the model "
        "so that it returns them."
    )
