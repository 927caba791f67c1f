"""Load a network from every form of ``--model`` and ``--weights``, and match its classes with the data's."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..common.errors import InputError
from ..common.files import sha256_file
from .architectures import build_module, known_weights, names_torchvision_weights, preprocessing_of
from .checkpoints import load_tensors, read_checkpoint
from .checks import check_network, check_values
from .head import head_width
from .images.pictures import in_words
from .images.splits import Splits, reorder_classes
from .loading.chosen_output import choose_output
from .loading.lazy_layers import shape_lazy_layers, without_shape
from .loading.outputs import scores_in
from .loading.permanent_weights import in_own_form, make_permanent
from .network import Network, Source, noise
from .rewrites.plain import make_plain
from .saved import load_network
from .settings import ModelSettings


def load_model(settings: ModelSettings | str = "digits", weights: str | None = None) -> Network:
    """Load a network: ``digits``, a torchvision name, ``timm:NAME``, ``file.py:function``, or a folder that secateur wrote.

    The weights must fit and be finite, and a forward pass must give finite class scores.

    Raises:
        InputError: the model or the weights cannot be loaded or used.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> network.input_shape
        (1, 8, 8)
        >>> network.logits(network.example(3)).shape  # class scores of three noise images
        torch.Size([3, 10])
    """
    if isinstance(settings, str):
        settings = ModelSettings(model=settings, weights=weights)
    if settings.model and Path(settings.model).is_dir():
        return load_network(Path(settings.model), settings)
    torch.manual_seed(0)  # a factory may initialise at random
    path = Path(settings.weights) if settings.weights and not names_torchvision_weights(settings) else None
    if path is not None and not path.exists():
        raise InputError(f"The weights {path} do not exist.{known_weights(settings.model)}")
    tensors = read_checkpoint(path) if path else None
    declared = build_module(settings, tensors)
    module, preprocessing = declared.module.float().eval(), preprocessing_of(settings, declared)
    example = noise(2, preprocessing.input_shape)
    lazy = (tensors is not None or not without_shape(module)) and shape_lazy_layers(module, example)
    check_values(module)
    if tensors is not None and path is not None:
        try:
            load_tensors(module, in_own_form(module, tensors), str(path))
        except InputError as error:
            if not lazy:
                raise
            shape = in_words(preprocessing.input_shape)
            raise InputError(
                f"{error} The model's lazy layers got their shapes from an input of {shape}: --input-shape changes it."
            ) from error
    notes = make_permanent(module, example)
    output, about = choose_output(module, settings.output, example)
    classes = head_width(module)
    network = check_network(
        Network(
            module=module,
            preprocessing=preprocessing,
            class_names=tuple(map(str, declared.class_names)),
            source=Source(settings.model, settings.weights, sha256_file(path) if path else None, classes, output),
            notes=(*declared.notes, *notes, *about),
        )
    )
    plain = make_plain(network.module, network.example(1))
    return replace(network, module=plain.module, notes=(*network.notes, *plain.summary()))


def match_classes(network: Network, splits: Splits) -> tuple[Network, Splits]:
    """Match the network's classes with the data's.

    If the model declares the same class names in another order, the labels are renumbered to that order. If it declares none,
    it takes the data's names in their (sorted) order. If no split has labels either, the classes are numbered.

    Raises:
        InputError: the numbers of classes differ, or the names do.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> network, images = secateur.match_classes(network, images)
        >>> network.class_names == images.class_names
        True
    """
    with torch.no_grad():
        outputs = network.logits(network.example()).shape[1]
    if not splits.class_names:
        names = _distinct(network.class_names) or tuple(f"class {index}" for index in range(outputs))
        return replace(network, class_names=names), replace(splits, class_names=names)
    if outputs != len(splits.class_names):
        shown = ", ".join(splits.class_names[:5]) + (", …" if len(splits.class_names) > 5 else "")
        raise InputError(
            f"The model's head has {outputs} classes, the data have {len(splits.class_names)} ({shown}). They must agree: "
            f"use the data that the model was trained for.{_other_output(network, len(splits.class_names))}"
        )
    if not network.class_names or network.class_names == splits.class_names:
        return replace(network, class_names=splits.class_names), splits
    if set(network.class_names) != set(splits.class_names):
        if any("torchvision" in note for note in network.notes):
            note = "Class names differ from torchvision's; sorted folder names are assumed to be in the order of its outputs."
            return (
                replace(network, class_names=splits.class_names),
                replace(splits, notes=(*splits.notes, note)),
            )
        odd = sorted(set(network.class_names) ^ set(splits.class_names))
        raise InputError(
            f"The model's class names and the data's differ: {', '.join(map(repr, odd[:6]))}. Rename the class folders, or "
            "the model's CLASS_NAMES."
        )
    return network, reorder_classes(splits, network.class_names)


def _other_output(network: Network, classes: int) -> str:
    """A hint at an output of the model that has so many classes; empty if there is none."""
    with torch.no_grad():
        returned = network.module(network.example())
    returned = returned if network.source.output is None else returned[1]
    fitting = [name for name, scores in scores_in(returned).items() if scores.shape[1] == classes and name]
    return f" Of the model's outputs, {fitting[0]!r} has {classes}: --output {fitting[0]} takes it." if fitting else ""


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Append the index to names that occur more than once: ImageNet has two classes named crane."""
    counts = Counter(names)
    return tuple(f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names))
