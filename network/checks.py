"""Checks that a network and its weights are usable, before any work."""

import torch
from torch import Tensor, nn

from ..common.errors import InputError, first_line
from .hooks import pick_logits
from .loading.lazy_layers import listed, without_shape
from .loading.repeatability import check_repeats
from .network import Network


def check_values(module: nn.Module) -> None:
    """Check that every parameter and buffer has values.

    Raises:
        InputError: naming lazy layers or a meta tensor.
    """
    if lazy := without_shape(module):
        raise InputError(
            f"The model's lazy layers {listed(lazy)} have no values. Give the trained weights with --weights, or load them "
            "before the model is returned."
        )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            raise InputError(
                f"The model's {name!r} has no values (a meta tensor). Initialise it before the model is returned."
            )


def check_network(network: Network) -> Network:
    """Check a network: finite weights and class scores, any batch size, the same scores every time, class names as outputs.

    Returns:
        The network itself.

    Raises:
        InputError: naming the tensor, the layer or the shape.
    """
    for name, tensor in network.module.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_quantized:
            raise InputError(
                f"The model holds {name!r}, which is not a plain tensor (a quantised layer?). Use the floating-point model."
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"The weights hold NaN or infinity in {name!r}. Use an earlier checkpoint.")
    try:
        with torch.no_grad():
            logits = network.logits(network.example())
            three = network.logits(network.example(3))
        check_repeats(network.module, network.example(), lambda output: {"logits": pick_logits(output)})
    except InputError:
        raise
    except Exception as error:  # a user's forward may raise anything
        shape = "x".join(map(str, network.input_shape))
        raise InputError(
            f"The model fails on an input of {shape} (channels x height x width): {first_line(error)}. "
            "Pass the right shape with --input-shape; the model must accept any batch size."
        ) from error
    if (len(logits), len(three)) != (2, 3):
        raise InputError(
            f"The model returns {len(logits)} rows for 2 images and {len(three)} for 3. It must return one row per image."
        )
    if not bool(torch.isfinite(logits).all()):
        raise InputError(
            "The model's class scores are NaN or infinite on a random input. Check that the weights are not damaged."
        )
    if network.class_names and len(network.class_names) != logits.shape[1]:
        raise InputError(
            f"The model declares {len(network.class_names)} class names, but its head has {logits.shape[1]} outputs. "
            "Declare one name per output."
        )
    return network
