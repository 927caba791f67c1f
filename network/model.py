"""A trained network with what it expects, from every form of ``--model`` and ``--weights``; saved and reloaded."""

import copy
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..errors import InputError
from ..files import read_json, replacing, sha256_file
from ..recipe import ModelSettings
from .architectures import Declared, build_module, head_name, head_width, known_weights, names_torchvision_weights
from .cutting import Cut, apply_cut, cut_from_json, cut_to_json
from .images import Preprocessing, Splits, reorder_classes
from .loading import first_line, read_checkpoint
from .probe import pick_logits
from .target_layer import NewLayer, insert_layer

MODEL_FILE = "model.safetensors"
PLAN_FILE = "plan.json"
_FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Where a network came from, enough to build it again: the ``--model`` value, and the hash of its weights."""

    model: str
    weights: str | None = None
    weights_sha256: str | None = None
    classes: int | None = None


@dataclass(frozen=True)
class Network:
    """A trained classifier.

    ``module`` is in evaluation mode, float32, on the CPU. ``class_names`` is empty until the data name them.
    ``cuts`` are the cuts that made it from ``source``, in order; empty for a network as it was brought. ``new_layer`` was put
    into it before any cut.
    """

    module: nn.Module = field(repr=False)
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    source: Source
    cuts: tuple[Cut, ...] = ()
    notes: tuple[str, ...] = ()
    new_layer: NewLayer | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return self.preprocessing.input_shape

    def logits(self, images: Tensor) -> Tensor:
        """Class scores ``[n, classes]`` of normalised images ``[n, C, H, W]``."""
        return pick_logits(self.module(images))

    def example(self, count: int = 2, seed: int = 0) -> Tensor:
        """Seeded noise in the shape of ``count`` normalised images."""
        return torch.randn(count, *self.input_shape, generator=torch.Generator().manual_seed(seed))

    def copy(self) -> "Network":
        """The same network with weights of its own."""
        return replace(self, module=copy.deepcopy(self.module))


def load_model(settings: ModelSettings | str = "digits", weights: str | None = None) -> Network:
    """Load a network: ``digits``, a torchvision name, ``timm:NAME``, ``file.py:function``, or a folder that secateur wrote.

    Checked here: the weights fit and are finite, and one forward pass gives finite class scores.

    Raises:
        InputError: naming what is wrong and what to do.

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
    module = declared.module
    _check_values(module)
    if tensors is not None and path is not None:
        _load_tensors(module, tensors, str(path))
    network = Network(
        module=module.float().eval(),
        preprocessing=_preprocessing(settings, declared),
        class_names=tuple(map(str, declared.class_names)),
        source=Source(settings.model, settings.weights, sha256_file(path) if path else None, head_width(module)),
        notes=declared.notes,
    )
    return check_network(network)


def _check_values(module: nn.Module) -> None:
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


def match_classes(network: Network, splits: Splits) -> tuple[Network, Splits]:
    """Bring the network's classes and the data's together.

    Names that the model declares in another order than the folders' decide, and labels follow. Without declared names
    the data's are taken, in their (sorted) order; where no split has labels either, numbers name the classes.

    Raises:
        InputError: the counts differ, or the declared names are others than the data's.

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
        raise InputError(
            f"The model's head has {outputs} classes, the data have {len(splits.class_names)} "
            f"({', '.join(splits.class_names[:5])}, …). They must agree: bring the data the model was trained for."
        )
    if not network.class_names or network.class_names == splits.class_names:
        return replace(network, class_names=splits.class_names), splits
    if set(network.class_names) != set(splits.class_names):
        if any("torchvision" in note for note in network.notes):
            note = "Class names differ from torchvision's; sorted folder names are taken in the order of its outputs."
            return (
                replace(network, class_names=splits.class_names),
                replace(splits, notes=(*splits.notes, note)),
            )
        odd = sorted(set(network.class_names) ^ set(splits.class_names))
        raise InputError(f"The model's class names and the data's differ: {', '.join(map(repr, odd[:6]))}.")
    return network, reorder_classes(splits, network.class_names)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names that occur more than once with their index: of ImageNet's classes two are cranes."""
    counts = Counter(names)
    return tuple(f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names))


def save_network(network: Network, folder: Path, plan_sha256: str | None) -> Path:
    """Write ``model.safetensors``: weights, and how to build the network around them. Equal input, equal bytes.

    The last cut is not in it: it lies in ``plan.json`` beside it, whose hash the file holds. Without a plan's hash all cuts
    are in the file, and it needs no other.
    """
    from safetensors.torch import save

    source = network.source
    description = {
        "format": _FORMAT,
        "model": _relative_to(source.model, folder),
        "weights": Path(source.weights).name if source.weights else None,
        "weights_sha256": source.weights_sha256,
        "classes": source.classes,
        "input_shape": list(network.input_shape),
        "mean": list(network.preprocessing.mean),
        "std": list(network.preprocessing.std),
        "resize": network.preprocessing.resize,
        "class_names": list(network.class_names),
        "earlier_cuts": [cut_to_json(cut) for cut in (network.cuts[:-1] if plan_sha256 else network.cuts)],
        "plan_sha256": plan_sha256,
        **({"new_layer": asdict(network.new_layer)} if network.new_layer else {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.module.state_dict().items()}
    path = folder / MODEL_FILE
    metadata = {"secateur": json.dumps(description, sort_keys=True)}  # one entry: safetensors does not keep their order
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))
    return path


def load_network(folder: Path, settings: ModelSettings | None = None) -> Network:
    """Bring a network back from ``model.safetensors`` and, if it was pruned, ``plan.json``, without pickle.

    ``settings.weights`` has no place here and is refused.

    Raises:
        InputError: a file is missing, was not written by secateur, or belongs to another run.
    """
    from safetensors import SafetensorError, safe_open

    if settings is not None and settings.weights is not None:
        raise InputError(f"{folder} holds its own weights; leave --weights out.")
    if settings is not None and (settings.input_shape or settings.mean or settings.std):
        raise InputError(f"{folder} says what its images are like; leave --input-shape, --mean and --std out.")
    path, plan_path = folder / MODEL_FILE, folder / PLAN_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no {MODEL_FILE}; it is no folder of a network that secateur wrote.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}). Prune again, or train again.") from error
    if "secateur" not in metadata:
        raise InputError(f"{path} was not written by secateur. Load it with --model and --weights instead.")
    description = json.loads(metadata["secateur"])
    if description["format"] != _FORMAT:
        raise InputError(f"{path} has format {description['format']}; this secateur reads {_FORMAT}.")
    cuts = tuple(map(cut_from_json, description["earlier_cuts"]))
    if description["plan_sha256"] is not None:
        plan = read_json(plan_path)
        if sha256_file(plan_path) != description["plan_sha256"]:
            raise InputError(
                f"{plan_path} is not the plan that {path.name} was cut by. Prune again with the plan you want."
            )
        cuts = (*cuts, cut_from_json(plan["cut"]))
    model = _absolute_from(description["model"], folder)
    module = build_module(
        ModelSettings(model=model, weights=None), None, description["classes"], pretrained=False
    ).module
    module = module.float().eval()
    example = torch.zeros(1, *description["input_shape"])
    new_layer = NewLayer(**description["new_layer"]) if "new_layer" in description else None
    if new_layer is not None:
        module = insert_layer(module, example, new_layer)
    for cut in cuts:
        module = apply_cut(module, cut, example)
    _load_tensors(module, tensors, str(path))
    preprocessing = Preprocessing(
        tuple(description["input_shape"]), tuple(description["mean"]), tuple(description["std"]), description["resize"]
    )
    source = Source(model, description["weights"], description["weights_sha256"], description["classes"])
    return check_network(
        Network(module, preprocessing, tuple(description["class_names"]), source, cuts, new_layer=new_layer)
    )


def _load_tensors(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
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


def _preprocessing(settings: ModelSettings, declared: Declared) -> Preprocessing:
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
            f"The normalisation has {len(means)} means and {len(deviations)} standard deviations for {channels} channels."
        )
    if any(not math.isfinite(value) for value in means) or any(not value > 0 for value in deviations):
        raise InputError(f"The normalisation must be finite means and positive deviations (got {means}, {deviations}).")
    resize = declared.resize if settings.input_shape is None else None
    return Preprocessing((channels, height, width), means, deviations, resize)


def _relative_to(model: str, folder: Path) -> str:
    """A factory's file as seen from the run folder, so that both can be moved together."""
    file, _, function = model.rpartition(":")
    if not file.endswith(".py"):
        return model
    return f"{Path(os.path.relpath(Path(file).resolve(), folder.resolve())).as_posix()}:{function}"


def _absolute_from(model: str, folder: Path) -> str:
    file, _, function = model.rpartition(":")
    if not file.endswith(".py"):
        return model
    path = folder / file
    if not path.is_file():
        raise InputError(
            f"{folder} was made from {function}() in {path}, which is no longer there. Put the file back where it was."
        )
    return f"{path}:{function}"
