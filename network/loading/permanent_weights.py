"""Weights that a layer works out from others at every call, made plain ones.

``weight_norm``, ``spectral_norm``, ``orthogonal`` and any other ``torch.nn.utils.parametrize``, the older ``weight_norm`` and
``spectral_norm`` that work by hooks, and the masks of ``torch.nn.utils.prune``: a cut, a repair and a copy need weights that
can be set. A network in evaluation mode works out the same weights every time, so they take the place of what they come from.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ...common.errors import InputError
from .outputs import tensors_in
from .repeatability import check_repeats

TOLERANCE = 1e-6
"""Largest change of the outputs, of the largest |output|."""
_NAMES = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm", "_Orthogonal": "orthogonal"}


def make_permanent(module: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Make the computed weights of a module plain parameters, in place; the module is in evaluation mode afterwards.

    Args:
        example: input of the network's shape, for which the outputs must stay the same.

    Returns:
        A note for each way in which weights were computed, naming the layers.

    Raises:
        InputError: the outputs change, or differ from call to call before.
    """
    module.eval()
    layers: dict[str, list[str]] = defaultdict(list)
    for name, _, tensor_name, kind in _computed(module):
        layers[kind].append(f"{name}.{tensor_name}" if name else tensor_name)
    if not layers:
        return ()
    before = _outputs(module, example)
    if before is not None:
        check_repeats(module, example)
    for _, child, tensor_name, _ in list(_computed(module)):
        _make_plain(child, tensor_name)
    after = _outputs(module, example)
    for output, tensor in (before or {}).items():
        change = float((after[output] - tensor).abs().max()) if after and output in after else float("inf")
        if not change <= TOLERANCE * float(tensor.abs().max()):
            raise InputError(
                f"The weights that {' and '.join(layers)} compute cannot be made permanent: the network's output changes by "
                f"{change:.2g}. Remove them before the model is returned (torch.nn.utils.parametrize.remove_parametrizations)."
            )
    return tuple(
        f"{kind} of {_listed(names)} was made permanent: these are plain weights from here on."
        for kind, names in layers.items()
    )


def in_own_form(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors in the form in which a module computes its weights.

    Files hold ``weight_g`` and ``weight_v`` where ``weight_norm`` was the older one. Where they hold the plain weight (as a
    file that secateur wrote does), the module's own is made plain as well, in place.
    """
    found = dict(tensors)
    for name, child, tensor_name, kind in list(_computed(module)):
        start = f"{name}." if name else ""
        own = f"{start}parametrizations.{tensor_name}.original"
        older = [f"{start}{tensor_name}_{letter}" for letter in "gv"]
        if kind == "weight_norm" and parametrize.is_parametrized(child) and set(older) <= set(found):
            found.update({f"{own}{index}": found.pop(part) for index, part in enumerate(older)})
        elif f"{start}{tensor_name}" in found:
            _make_plain(child, tensor_name)
    return found


def _computed(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, str]]:
    """Name and module of every layer with a computed tensor, the tensor's name, and what computes it."""
    for name, child in module.named_modules():
        if parametrize.is_parametrized(child):
            assert isinstance(child.parametrizations, nn.ModuleDict)
            for tensor_name, steps in child.parametrizations.items():
                kinds = [type(step).__name__ for step in steps]  # type: ignore[attr-defined]
                yield name, child, tensor_name, " and ".join(_NAMES.get(kind, kind) for kind in kinds)
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield name, child, hook.name, "weight_norm"
            elif isinstance(hook, SpectralNorm):
                yield name, child, hook.name, "spectral_norm"
            elif isinstance(hook, prune.BasePruningMethod):
                yield name, child, hook._tensor_name, "torch.nn.utils.prune"


def _make_plain(layer: nn.Module, name: str) -> None:
    if parametrize.is_parametrized(layer, name):
        _remove_parametrization(layer, name)
        return
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            remove_weight_norm(layer, name)
        elif isinstance(hook, SpectralNorm) and hook.name == name:
            remove_spectral_norm(layer, name)
        elif isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == name:
            prune.remove(layer, name)  # type: ignore[no-untyped-call]
        else:
            continue
        return


def _remove_parametrization(layer: nn.Module, name: str) -> None:
    assert isinstance(layer.parametrizations, nn.ModuleDict)
    steps = layer.parametrizations[name]
    parameters = dict(steps.named_parameters(recurse=False))
    with torch.no_grad():
        value = getattr(layer, name).clone()
    if isinstance(getattr(steps, "original", None), nn.Parameter):
        # torch sets its value in place: a layer that shares the parameter must not get it
        steps.original = nn.Parameter(steps.original.detach().clone())  # type: ignore[operator]
    parametrize.remove_parametrizations(layer, name)
    if parameters:  # torch makes a buffer of what comes from several frozen parameters
        delattr(layer, name)
        trained = any(parameter.requires_grad for parameter in parameters.values())
        layer.register_parameter(name, nn.Parameter(value, requires_grad=trained))


def _outputs(module: nn.Module, example: Tensor) -> dict[str, Tensor] | None:
    """All outputs; None if the network fails, which the check of every network reports."""
    try:
        with torch.no_grad():
            return tensors_in(module(example))
    except Exception:  # a user's forward may raise anything
        return None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4])}{more}"
