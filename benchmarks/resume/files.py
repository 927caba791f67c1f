"""A run folder's files: their hashes, and temporary or broken files after a kill."""

import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import onnx
from safetensors.torch import load_file

from secateur.common.files import read_json, sha256_file

FILES = (
    "plan.json", "recipe.toml", "scores.safetensors", "sensitivity.json", "model.safetensors", "model.onnx", "baseline.onnx",
)  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the run's existing files."""
    return {name: sha256_file(folder / name) for name in FILES if (folder / name).is_file()}


def temporaries(folder: Path) -> list[str]:
    """Temporary files of the run folder, without the random parts of their names, and unfinished stages."""
    found = [path.name[1:].removesuffix(".part").rpartition(".")[0] for path in folder.glob(".*.part")]
    return sorted(found + [path.name for path in folder.glob(".secateur/stages/.*.part")])


def broken(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Incomplete files of the run and of its finished stages under their final names."""
    found = [name for name, value in hashes(folder).items() if value != wanted[name]]
    stages = [path for path in folder.glob(".secateur/stages/*") if not path.name.startswith(".")]
    found += [f"{stage.name}/done.json" for stage in stages if not (stage / "done.json").is_file()]
    for path in (*folder.glob("*.*"), *(file for stage in stages for file in stage.iterdir())):
        if path.name.startswith("."):
            continue
        try:
            _read(path)
        except Exception as error:  # readers raise many exception types
            found.append(f"{path.relative_to(folder)}: {error}")
    return found


def _read(path: Path) -> None:
    match path.suffix:
        case ".json":
            read_json(path)
        case ".toml":
            tomllib.loads(path.read_text(encoding="utf-8"))
        case ".safetensors":
            load_file(path)
        case ".onnx":
            onnx.checker.check_model(onnx.load(path))
        case ".xml":
            ElementTree.parse(path)
        case ".html":
            if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
                raise ValueError("cut short")
        case ".md":
            path.read_text(encoding="utf-8")
        case other:
            raise ValueError(f"{other} files are not expected")
