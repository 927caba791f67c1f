"""Save a network as ``model.safetensors`` and load it again, without pickle."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError, first_line
from ..common.files import read_json, replacing, sha256_file
from .architectures import build_module
from .channels.cut import Cut, apply_cut, cut_from_json, cut_to_json
from .checkpoints import load_tensors
from .checks import check_network
from .graph.target_layer import NewLayer, insert_layer
from .images.pictures import Preprocessing
from .loading.chosen_output import put_first
from .loading.lazy_layers import shape_lazy_layers
from .loading.permanent_weights import make_permanent
from .network import Network, Source, noise
from .rewrites.plain import make_plain
from .settings import ModelSettings

MODEL_FILE = "model.safetensors"
PLAN_FILE = "plan.json"
_FORMAT = 1


def save_network(network: Network, folder: Path, plan_sha256: str | None) -> Path:
    """Write ``model.safetensors``: the weights, and how to build their network. Equal networks give equal bytes.

    With ``plan_sha256``, the last cut is left to the ``plan.json`` of that hash beside the file. Without it, the file holds
    all cuts.
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
        **({"output": source.output} if source.output else {}),
        **({"new_layer": asdict(network.new_layer)} if network.new_layer else {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.module.state_dict().items()}
    path = folder / MODEL_FILE
    metadata = {"secateur": json.dumps(description, sort_keys=True)}  # one entry: safetensors does not keep their order
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))
    return path


def load_network(folder: Path, settings: ModelSettings | None = None) -> Network:
    """Load a network from ``model.safetensors`` and, if it was pruned, ``plan.json``, without pickle.

    Args:
        settings: may give no weights, input shape or normalisation, since the folder holds them.

    Raises:
        InputError: a file is missing, was not written by secateur, or belongs to another run.
    """
    if settings is not None and settings.weights is not None:
        raise InputError(f"{folder} holds its own weights. Leave out --weights.")
    if settings is not None and (settings.input_shape or settings.mean or settings.std or settings.output is not None):
        raise InputError(
            f"{folder} holds its own input shape, normalisation and output. Leave out --input-shape, --mean, --std and "
            "--output."
        )
    path = folder / MODEL_FILE
    description, tensors = _read(path)
    cuts: tuple[Cut, ...] = tuple(map(cut_from_json, description["earlier_cuts"]))
    if description["plan_sha256"] is not None:
        cuts = (*cuts, _last_cut(path, description["plan_sha256"]))
    model = _absolute_from(description["model"], folder)
    new_layer = NewLayer(**description["new_layer"]) if "new_layer" in description else None
    module = build_module(ModelSettings(model=model), None, description["classes"], pretrained=False).module
    module = module.float().eval()
    example = torch.zeros(1, *description["input_shape"])
    shape_lazy_layers(module, example)
    make_permanent(module, example)
    output = description.get("output")
    if output is not None:
        put_first(module, output)
    module = make_plain(module, noise(1, description["input_shape"])).module
    if new_layer is not None:
        module = insert_layer(module, example, new_layer)
    for cut in cuts:
        module = apply_cut(module, cut, example)
    load_tensors(module, tensors, str(path))
    preprocessing = Preprocessing(
        tuple(description["input_shape"]), tuple(description["mean"]), tuple(description["std"]), description["resize"]
    )
    source = Source(model, description["weights"], description["weights_sha256"], description["classes"], output)
    return check_network(
        Network(module, preprocessing, tuple(description["class_names"]), source, cuts, new_layer=new_layer)
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``model.safetensors`` says of the network, and the tensors in it."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(
            f"{path.parent} holds no {path.name}, so it is not a folder that secateur wrote. Pass the folder of a run."
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}). Prune again, or train again.") from error
    if "secateur" not in metadata:
        raise InputError(f"{path} was not written by secateur. Load it with --model and --weights instead.")
    description: dict[str, Any] = json.loads(metadata["secateur"])
    if description["format"] != _FORMAT:
        raise InputError(
            f"{path} has format {description['format']}; this version reads format {_FORMAT}. Update secateur."
        )
    return description, tensors


def _last_cut(path: Path, plan_sha256: str) -> Cut:
    """The cut in the ``plan.json`` beside ``model.safetensors``, whose hash must be the one that the file holds."""
    plan_path = path.with_name(PLAN_FILE)
    plan = read_json(plan_path)
    if sha256_file(plan_path) != plan_sha256:
        raise InputError(
            f"{plan_path} is not the plan by which {path.name} was cut. Prune again with the plan that you want."
        )
    return cut_from_json(plan["cut"])


def _relative_to(model: str, folder: Path) -> str:
    """The path of a user's file relative to the run folder, so that both can be moved together."""
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
