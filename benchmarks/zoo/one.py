"""One network of the zoo, in a process of its own: python -m benchmarks.zoo.one groups|parity ARGUMENTS"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import torch

import secateur
from benchmarks.zoo.networks import smallest
from benchmarks.zoo.opened import opened
from secateur.common.errors import SecateurError

FACTORY = '''"""A network of the zoo, as a user brings it."""

from benchmarks.zoo.networks import build

INPUT_SHAPE = (3, {size}, {size})
NORMALISATION = {{"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}}


def network():
    return build({name!r}, {size}, {seed})
'''


def factory_file(folder: Path, name: str, size: int, seed: int) -> str:
    """Write the file of a network into a folder; returned as ``--model`` takes it."""
    path = folder / "zoo_network.py"
    path.write_text(FACTORY.format(name=name, size=size, seed=seed), encoding="utf-8")
    return f"{path}:network"


def groups_of(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The network's size, what of it is open, and the seconds that it took to find that out."""
    start = time.perf_counter()
    row: dict[str, Any] = {"pixels": smallest(name, seed)}
    row["build_s"] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    try:
        network = secateur.load_model(factory_file(folder, name, row["pixels"], seed))
        row["classes"] = network.logits(network.example(1)).shape[1]
        groups = secateur.find_groups(network.module, network.example())
        row |= opened(groups, secateur.measure_cost(network).along(groups))
    except SecateurError as error:
        row |= {"opened": 0.0, "lowest": 1.0, "refused": str(error)}
    except Exception as error:  # a defect of secateur's; the row says which
        row |= {"opened": 0.0, "lowest": 1.0, "defect": f"{type(error).__name__}: {error}"}
    row["groups_s"] = round(time.perf_counter() - start, 2)
    return row


def parity_of(run: Path, pictures: Path) -> dict[str, Any]:
    """The greatest difference between the class scores of a run's ONNX file and of its module for its test pictures, relative
    to the scores.
    """
    network = secateur.load_model(str(run))
    images = next(iter(secateur.load_images(str(pictures), network.preprocessing).test.batches(8)))[0]
    with torch.no_grad():
        expected = network.logits(images).numpy()
    session = onnxruntime.InferenceSession(str(run / "model.onnx"), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return {"parity": float(numpy.abs(given - expected).max() / max(1.0, float(numpy.abs(expected).max())))}


def main() -> None:
    torch.set_num_threads(1)
    kind, *arguments = sys.argv[1:]
    if kind == "groups":
        name, seed, folder = arguments
        row = groups_of(name, int(seed), Path(folder))
    else:
        row, folder = parity_of(Path(arguments[0]), Path(arguments[1]) / "pictures"), arguments[1]
    (Path(folder) / f"{kind}.json").write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main()
