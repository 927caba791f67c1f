"""The input and output of a ranker: the task, scores by layer, and scores with their method and unit."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import InputError
from ..common.files import replacing
from ..common.progress import Progress, silent
from ..network.images.images import Images
from ..network.network import Network
from .settings import AgicSettings, PicnnSettings


@dataclass(frozen=True)
class KernelScores:
    """How much each kernel matters; higher is more important.

    ``layers`` maps a layer's name to one score per kernel, float32 ``[C]``; ``per_class`` maps it to ``[classes, C]`` if the
    method distinguishes classes. ``unit`` is the unit of a score, ``details`` describe its computation. ``members`` are the
    scores of a consensus's methods, by method; empty for other rankings.

    Raises:
        InputError: a score is NaN or infinite.
    """

    method: str
    unit: str
    layers: Mapping[str, Tensor]
    per_class: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, "KernelScores"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in [*self.layers.items(), *self.per_class.items()]:
            if not bool(torch.isfinite(values).all()):
                raise InputError(
                    f"{self.method} returned NaN or infinite scores for layer {name!r}. Check the network's weights, or use "
                    "another ranking."
                )

    def save(self, path: Path) -> None:
        """Write as safetensors; equal scores give equal bytes."""
        from safetensors.torch import save

        tensors, about = self._tensors(""), self._about()
        about["members"] = {method: scores._about() for method, scores in self.members.items()}
        for method, scores in self.members.items():
            tensors.update(scores._tensors(f"member/{method}/"))
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"secateur_scores": json.dumps(about, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> "KernelScores":
        """Load scores that :meth:`save` wrote.

        Raises:
            InputError: the file is missing, damaged, or holds no scores.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise InputError(f"The scores {path} do not exist. Run `secateur explain` first.")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["secateur_scores"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(
                f"{path} holds no scores that secateur can read ({error}). Run `secateur explain` again."
            ) from error

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        def scores(prefix: str, about: Mapping[str, Any]) -> "KernelScores":
            layers, per_class = part(f"{prefix}score/"), part(f"{prefix}per_class/")
            return cls(about["method"], about["unit"], layers, per_class, about["details"])

        members = {method: scores(f"member/{method}/", own) for method, own in about.get("members", {}).items()}
        return replace(scores("", about), members=members)

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        parts = {"score": self.layers, "per_class": self.per_class}
        return {
            f"{prefix}{part}/{name}": values.float().contiguous()
            for part, layers in parts.items()
            for name, values in layers.items()
        }

    def _about(self) -> dict[str, Any]:
        return {"method": self.method, "unit": self.unit, "details": dict(self.details)}


@dataclass(frozen=True)
class LayerScores:
    """The result of a ranker: :class:`KernelScores` without method and unit, which the registry adds."""

    layers: Mapping[str, Tensor]
    per_class: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    members: Mapping[str, KernelScores] = field(default_factory=dict)

    def named(self, method: str, unit: str) -> KernelScores:
        """The same as :class:`KernelScores` by ``method`` in ``unit``.

        Raises:
            InputError: a score is NaN or infinite.
        """
        return KernelScores(method, unit, self.layers, self.per_class, self.details, self.members)


@dataclass(frozen=True)
class RankingTask:
    """The input of a ranker. ``images`` are calibration images, never validation or test images.

    ``scratch`` is a folder for this network, these images and this method only, where long computations keep checkpoints to
    resume from; None for none. ``agic`` and ``picnn`` are the settings of those rankers.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> secateur.RankingTask(network, images.train.sample(200, seed=0)).batch_size
        128
    """

    network: Network
    images: Images
    seed: int = 0
    device: str = "cpu"
    progress: Progress = silent
    scratch: Path | None = None
    agic: AgicSettings = field(default_factory=AgicSettings)
    picnn: PicnnSettings = field(default_factory=PicnnSettings)

    @property
    def batch_size(self) -> int:
        """Images per pass, by input size: 128 up to 64 pixels a side, 16 at 224."""
        _, height, width = self.network.input_shape
        return max(1, min(128, 128 * 80 * 80 // (height * width)))
