"""Build the module that ``--model`` names: the digits network, torchvision, timm, or a function in a user's file."""

import difflib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import InputError, describe, first_line
from ..common.user_code import import_file, split_function
from .digits import build_digits_network
from .head import classes_in
from .images.pictures import Preprocessing
from .settings import ModelSettings


@dataclass(frozen=True)
class Declared:
    """A module with what it declares about its input and classes; None where it declares nothing."""

    module: nn.Module
    input_shape: Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    resize: int | None = None
    class_names: Sequence[str] = ()
    notes: tuple[str, ...] = ()


def build_module(
    settings: ModelSettings, tensors: dict[str, Tensor] | None, classes: int | None = None, pretrained: bool = True
) -> Declared:
    """Build the module that ``settings.model`` names. A run folder is loaded by ``load_network`` instead.

    Args:
        tensors: the checkpoint that will be loaded into it, whose head gives the class count; None for the model's own
            weights.
        classes: outputs of the head; None for as many as the checkpoint or the model has.
        pretrained: False builds the architecture without its weights.

    Raises:
        InputError: there is no such model, or its code fails.
    """
    name = settings.model
    if name == "digits":
        return Declared(*build_digits_network(with_weights=pretrained and tensors is None))
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"), tensors, classes, pretrained)
    if ":" in name or name.endswith(".py"):
        return _from_factory(name)
    return _from_torchvision(settings, tensors, classes, pretrained)


def preprocessing_of(settings: ModelSettings, declared: Declared) -> Preprocessing:
    """How pictures become the network's input: by the settings, else by what the model declares.

    Raises:
        InputError: the input shape or the normalisation is missing or invalid.
    """
    shape = settings.input_shape or declared.input_shape
    if shape is None:
        raise InputError(
            f"--model {settings.model} does not say what image size it expects. Add INPUT_SHAPE = (3, 32, 32) (channels, "
            "height, width) to its file, or pass --input-shape 3,32,32."
        )
    mean, std = settings.mean or declared.mean, settings.std or declared.std
    if mean is None or std is None:
        raise InputError(
            f"--model {settings.model} does not say how its images were normalised. Add NORMALISATION = "
            '{"mean": (0.5,), "std": (0.25,)} (one number per channel, of values in [0, 1]) to its file, or pass '
            "--mean and --std."
        )
    try:
        channels, height, width = (int(size) for size in shape)
        means, deviations = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError) as error:
        raise InputError(f"--model {settings.model}: INPUT_SHAPE or NORMALISATION is not numeric ({error}).") from error
    if not len(means) == len(deviations) == channels:
        raise InputError(
            f"The normalisation has {len(means)} means and {len(deviations)} standard deviations for {channels} channels. "
            "Give one of each per channel."
        )
    if any(not math.isfinite(value) for value in means) or any(not value > 0 for value in deviations):
        raise InputError(
            f"Means must be finite and standard deviations positive (got mean {means} and std {deviations})."
        )
    resize = declared.resize if settings.input_shape is None else None
    return Preprocessing((channels, height, width), means, deviations, resize)


def names_torchvision_weights(settings: ModelSettings) -> bool:
    """Whether ``settings.weights`` names weights of torchvision rather than a file."""
    from torchvision import models

    if settings.model not in models.list_models(module=models) or settings.weights is None:
        return False
    known = {"DEFAULT", *models.get_model_weights(settings.model).__members__}
    return settings.weights.upper() in known and not Path(settings.weights).exists()


def known_weights(model: str) -> str:
    """A hint that lists torchvision's weights for a model; empty for other models."""
    from torchvision import models

    if model not in models.list_models(module=models):
        return ""
    return f" torchvision has {', '.join(models.get_model_weights(model).__members__)} for {model}."


def _from_factory(spec: str) -> Declared:
    path, function = split_function(spec, "--model")
    user = import_file(path, "--model")
    factory = getattr(user, function, None)
    if factory is None or not callable(factory):
        offered = sorted(name for name, value in vars(user).items() if callable(value) and not name.startswith("_"))
        hint = f"It has: {', '.join(offered)}." if offered else "Define it there."
        raise InputError(f"--model {spec}: {path} defines no function {function!r}. {hint}")
    try:
        module = factory()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"--model {spec}: calling {function}() failed with {describe(error)}") from error
    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    if not isinstance(module, nn.Module):
        raise InputError(
            f"--model {spec}: {function}() returned {type(module).__name__}, not an nn.Module. Return the model."
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(f"--model {spec}: {function}() returned a TorchScript module. Return the plain nn.Module.")
    resize = getattr(user, "RESIZE", None)
    if resize is not None and (isinstance(resize, bool) or not isinstance(resize, int) or resize < 1):
        raise InputError(f"{path}: RESIZE must be a positive whole number of pixels (got {resize!r}).")
    normalisation = getattr(user, "NORMALISATION", None) or {}
    if not isinstance(normalisation, dict) or not set(normalisation) <= {"mean", "std"}:
        raise InputError(f'{path}: NORMALISATION must be {{"mean": (…), "std": (…)}}.')
    return Declared(
        module,
        getattr(user, "INPUT_SHAPE", None),
        normalisation.get("mean"),
        normalisation.get("std"),
        resize,
        getattr(user, "CLASS_NAMES", ()),
    )


def _from_torchvision(
    settings: ModelSettings, tensors: dict[str, Tensor] | None, classes: int | None, pretrained: bool
) -> Declared:
    from torchvision import models

    name = settings.model
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, [*known, "digits"], n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise InputError(
            f"--model {name}: unknown model.{hint} Expected: digits, a torchvision classification model, timm:NAME, "
            "path/to/file.py:function, or a folder that secateur wrote."
        )
    weights = models.get_model_weights(name)
    chosen = weights.DEFAULT
    if settings.weights and names_torchvision_weights(settings):
        wanted = settings.weights.upper()
        if wanted != "DEFAULT" and wanted not in weights.__members__:
            raise InputError(
                f"--weights {settings.weights}: torchvision has no such weights for {name}. Expected "
                f"{', '.join(weights.__members__)}, or a file."
            )
        chosen = weights[wanted] if wanted != "DEFAULT" else chosen
    options: dict[str, Any] = {}
    if tensors is not None or classes is not None or not pretrained:
        if tensors is not None:
            classes = classes_in(models.get_model(name, weights=None), tensors) or classes
        module = models.get_model(name, weights=None, **({"num_classes": classes} if classes else {}), **options)
    else:
        try:
            module = models.get_model(name, weights=chosen)
        except OSError as error:
            raise InputError(
                f"--model {name}: its weights {chosen} are not cached and cannot be downloaded ({first_line(error)}). "
                "Pass a file with --weights."
            ) from error
    _drop_auxiliary_heads(module)
    transform = chosen.transforms()
    own_classes = pretrained and tensors is None
    return Declared(
        module,
        (3, transform.crop_size[0], transform.crop_size[0]),
        transform.mean,
        transform.std,
        transform.resize_size[0],
        chosen.meta.get("categories", ()) if own_classes else (),
        (_torchvision_note(settings, chosen),),
    )


def _torchvision_note(settings: ModelSettings, chosen: Any) -> str:
    taken = [
        name
        for name, given in (("input size", settings.input_shape), ("normalisation", settings.mean))
        if given is None
    ]
    if not taken:
        return "Class names are torchvision's or the data's."
    return f"{' and '.join(taken).capitalize()}: torchvision's, as declared with {chosen}."


def _from_timm(name: str, tensors: dict[str, Tensor] | None, classes: int | None, pretrained: bool) -> Declared:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"--model timm:{name}: timm is not installed. Run pip install 'secateur[timm]'.") from error
    if name not in timm.list_models(pretrained=False) and name.partition(".")[0] not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(
            f"--model timm:{name}: unknown timm model.{' Did you mean ' + ', '.join(near) + '?' if near else ''}"
        )
    if tensors is not None:
        classes = classes_in(timm.create_model(name, pretrained=False), tensors) or classes
    options = {"num_classes": classes} if classes else {}
    for logger in ("httpx", "huggingface_hub", "timm"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        module = timm.create_model(name, pretrained=pretrained and tensors is None, **options)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--model timm:{name}: its weights cannot be downloaded ({first_line(error)}). Pass a file with --weights."
        ) from error
    declared = module.pretrained_cfg
    return Declared(module, declared.get("input_size"), declared.get("mean"), declared.get("std"))


def _drop_auxiliary_heads(module: nn.Module) -> None:
    """Remove the auxiliary heads of GoogLeNet and Inception: only training uses them, and a cut would not follow them."""
    if getattr(module, "aux_logits", False):
        module.aux_logits = False  # type: ignore[assignment]
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(module, name):
                setattr(module, name, None)
