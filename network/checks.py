"""Checks that a network and its weights are sound before any work."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..common.errors import InputError, first_line
from .network import Network


def check_values(module: nn.Module) -> None:
    """Check that every parameter and buffer has values.

    Raises:
        InputError: naming a lazy or meta tensor.
    """
    for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(parameter, UninitializedParameter | UninitializedBuffer) or parameter.is_meta:
            raise InputError(
                f"The model's {name!r} has no values yet (a lazy or meta tensor). Build it with real ones."
            )


def check_network(network: Network) -> Network:
    """Finite weights and one forward pass with finite class scores; the class count where names are declared.

    Raises:
        InputError: naming the tensor, the layer or the shape.
    """
    for name, tensor in network.module.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_quantized:
            raise InputError(
                f"The model holds {name!r}, which is no plain tensor (a quantised layer?). Bring it in floats."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"The weights hold NaN or infinity in {name!r}. Take an earlier checkpoint.")
    try:
        with torch.no_grad():
            logits = network.logits(network.example())
            three = network.logits(network.example(3))
    except InputError:
        raise
    except Exception as error:  # a user's forward may raise anything
        shape = "x".join(map(str, network.input_shape))
        raise InputError(
            f"The model fails on an input of {shape} (channels x height x width): {first_line(error)}. "
            "Is that its input, at any batch size? Give another with --input-shape."
        ) from error
    if (len(logits), len(three)) != (2, 3):
        raise InputError(
            f"The model gives {len(logits)} rows for 2 images and {len(three)} for 3; one row an image is needed."
        )
    if not bool(torch.isfinite(logits).all()):
        raise InputError("The model's class scores are NaN or infinite on a random input. Are the weights damaged?")
    if network.class_names and len(network.class_names) != logits.shape[1]:
        raise InputError(
            f"The model declares {len(network.class_names)} class names, but its head has {logits.shape[1]} outputs."
        )
    return network
