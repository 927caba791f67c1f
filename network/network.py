"""A trained network with its preprocessing, class names and origin, and its fingerprint."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .channels.cut import Cut
from .graph.target_layer import NewLayer
from .hooks import pick_logits
from .images.pictures import Preprocessing


@dataclass(frozen=True)
class Source:
    """Where a network came from: the ``--model`` value to build it again, and the hash of its weights.

    ``output`` names the class scores among several outputs, where they are not found without it.
    """

    model: str
    weights: str | None = None
    weights_sha256: str | None = None
    classes: int | None = None
    output: str | None = None


@dataclass(frozen=True)
class Network:
    """A trained classifier.

    ``module`` is in evaluation mode, float32, on the CPU. ``class_names`` is empty until the data give them. ``cuts`` lead
    from ``source`` to this network, in order; there are none in the original. ``new_layer``, if any, was inserted before the
    first cut.
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
        return noise(count, self.input_shape, seed)

    def copy(self) -> "Network":
        """A copy of the network that shares no weights with it."""
        return replace(self, module=copy.deepcopy(self.module))


def noise(count: int, input_shape: Sequence[int], seed: int = 0) -> Tensor:
    """Seeded noise in the shape of ``count`` normalised images."""
    return torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(seed))


def fingerprint(network: Network) -> str:
    """The SHA-256 of a network's tensors and their names, the number of its cuts, and its output on seeded noise."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else str(tensor.item()).encode()
        )
    digest.update(str(len(network.cuts)).encode())
    with torch.no_grad():  # an edited forward around the same weights is another network
        digest.update(network.logits(network.example(2)).numpy().tobytes())
    return digest.hexdigest()
