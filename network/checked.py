"""Checks that a network and its weights are sound before any work."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..common.errors import InputError
from .architectures import head_name
from .network import Network
from .user_code import first_line


def check_values(module: nn.Module) -> None:
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


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    own = module.state_dict()
    for name in set(tensors) - set(own):
        layer, _, leaf = name.rpartition(".")
        if leaf == "bias" and f"{layer}.weight" in own and module.get_submodule(layer).bias is None:
            module.get_submodule(layer).register_parameter("bias", nn.Parameter(tensors[name].clone()))
    own = module.state_dict()
    if any(name.startswith(("aux1.", "aux2.", "AuxLogits.")) for name in tensors):
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if name in own or not name.startswith(("aux1.", "aux2.", "AuxLogits."))
        }
    missing = sorted(name for name in own if name not in tensors and not name.endswith("num_batches_tracked"))
    extra = sorted(set(tensors) - set(own))
    if missing or extra:
        parts = [
            f"{label} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for label, names in (("lacks", missing), ("has, but the model does not,", extra))
            if names
        ]
        raise InputError(
            f"The weights {what} do not fit the model: the file {'; it '.join(parts)}. Is it another model's?"
        )
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise InputError(f"The weights {what} hold complex numbers in {name!r}; real ones are needed.")
        if tensor.shape != own[name].shape:
            there, here = ("x".join(map(str, shape)) or "1" for shape in (tensor.shape, own[name].shape))
            head = head_name(module)
            note = " Both are the head: the class counts differ." if head and name.startswith(f"{head}.") else ""
            raise InputError(
                f"The weights {what} do not fit: {name} is {there} in the file, {here} in the model.{note}"
            )
    module.load_state_dict(tensors, strict=False)
