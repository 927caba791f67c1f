"""Ridge regression of a layer's outputs on its inputs, to fit its weights to changed inputs.

Statistics are accumulated over batches: the products of a batch in float32 about the mean of the first batch, their sums and
the solution in float64. With fewer samples than features the dual form is solved.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...network.graph.stand_ins import Constant


@dataclass(frozen=True)
class ReconstructionSettings:
    """Settings of the least-squares fit.

    Attributes:
        ridge: the penalty on the change of the weights, as a fraction of the mean squared input.
        places: the most positions sampled per image.
        seed: the seed of the sampling.
    """

    ridge: float = 3e-3
    places: int = 256
    seed: int = 0


def can_fit(layer: nn.Module) -> bool:
    """Whether a layer is of a kind that can be fitted."""
    if isinstance(layer, Constant):
        return True
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


class Problem:
    """Centred ridge regression of a layer's outputs on its inputs, from statistics accumulated over batches."""

    def __init__(self, layer: Any, settings: ReconstructionSettings) -> None:
        self.layer, self.settings = layer, settings
        self._count = 0
        self._total: Any = 0.0
        if isinstance(layer, Constant):
            return
        self.groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        self.kept = layer.weight.detach().flatten(1).unflatten(0, (self.groups, -1))  # [groups, out, features]
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))

    def add(self, seen: Tensor, target: Tensor, batch: int) -> None:
        """Add one batch: the layer's input and its target output."""
        if isinstance(self.layer, Constant):
            self._total = self._total + target.double().mean((2, 3)).sum(0)
            self._count += len(target)
            return
        rows = self._features(seen, target, batch)
        features = rows[0].shape[2]
        if self._count + rows[0].shape[1] <= features:
            self._rows.append(rows)
        elif self._rows:
            for earlier in self._rows:
                self._accumulate(*earlier)
            self._rows = []
        self._count += rows[0].shape[1]
        if not self._rows:
            self._accumulate(*rows)

    def solve(self, features: Tensor | None = None) -> tuple[Tensor, Tensor, tuple[float, float, float, str]]:
        """Return the weight in the layer's shape, the constant per output, and (before, after, conditioning, form).

        Args:
            features: fit only these of a kernel's weights (indices within a group); the others become zero.
        """
        if isinstance(self.layer, Constant):
            constant: Tensor = self._total / self._count
            return torch.empty(0), constant.float(), (1.0, 1.0, 1.0, "constant")
        if features is None:
            features = torch.arange(self.kept.shape[2], device=self.kept.device)
        if self._rows:
            return self._solve_dual(features)
        count = self._count
        assert self._shift is not None
        mean_x, mean_y = self._sums["x"] / count, self._sums["y"] / count
        mean_x = mean_x[:, features]
        gram = self._sums["xx"][:, features][:, :, features] - count * mean_x.unsqueeze(2) * mean_x.unsqueeze(1)
        cross = self._sums["xy"][:, features] - count * mean_x.unsqueeze(2) * mean_y.unsqueeze(1)
        energy = self._sums["yy"] - count * mean_y.square()
        start = self.kept[:, :, features].double()
        ridge = self.settings.ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
        ridge = ridge.clamp(min=1e-12 * max(1.0, float(gram.abs().max()))).view(-1, 1, 1)
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
        if bool(failed.any()):
            factor = torch.linalg.cholesky(
                gram + (ridge + 1e-6 * gram.diagonal(dim1=1, dim2=2).amax(1).view(-1, 1, 1)) * eye
            )
        change = torch.cholesky_solve(cross - gram @ start.mT, factor).mT
        solved = start + change

        def error(weight: Tensor) -> float:
            explained = 2 * (weight.mT * cross).sum() - ((gram @ weight.mT) * weight.mT).sum()
            return float((energy.sum() - explained) / energy.sum().clamp(min=1e-30))

        diagonal = factor.diagonal(dim1=1, dim2=2).square()
        conditioning = float((diagonal.amax(1) / diagonal.amin(1).clamp(min=1e-300)).max())
        shift_x, shift_y = (value.double() for value in self._shift)
        return self._result(
            solved,
            mean_x + shift_x[:, features],
            mean_y + shift_y,
            (error(start), error(solved), conditioning, "primal"),
            features,
        )

    def _solve_dual(self, features: Tensor) -> tuple[Tensor, Tensor, tuple[float, float, float, str]]:
        x = torch.cat([rows[0][:, :, features] for rows in self._rows], 1).double()
        y = torch.cat([rows[1] for rows in self._rows], 1).double()
        mean_x, mean_y = x.mean(1), y.mean(1)
        x, y = x - mean_x.unsqueeze(1), y - mean_y.unsqueeze(1)
        start = self.kept[:, :, features].double()
        rest = y - x @ start.mT
        kernel = x @ x.mT
        ridge = (self.settings.ridge * x.square().sum(1).mean(1)).clamp(min=1e-12).view(-1, 1, 1)
        eye = torch.eye(kernel.shape[1], dtype=x.dtype, device=x.device)
        factor = torch.linalg.cholesky(kernel + ridge * eye)
        solved = start + (x.mT @ torch.cholesky_solve(rest, factor)).mT
        energy = y.square().sum().clamp(min=1e-30)
        after = float((y - x @ solved.mT).square().sum() / energy)
        diagonal = factor.diagonal(dim1=1, dim2=2).square()
        conditioning = float((diagonal.amax(1) / diagonal.amin(1).clamp(min=1e-300)).max())
        return self._result(
            solved, mean_x, mean_y, (float(rest.square().sum() / energy), after, conditioning, "dual"), features
        )

    def _result(
        self, solved: Tensor, mean_x: Tensor, mean_y: Tensor, fit: tuple[float, float, float, str], features: Tensor
    ) -> tuple[Tensor, Tensor, tuple[float, float, float, str]]:
        constant = mean_y - (solved @ mean_x.unsqueeze(2)).squeeze(2)
        weight = torch.zeros_like(self.kept)
        weight[:, :, features] = solved.float()
        return weight.flatten(0, 1).view(self.layer.weight.shape), constant.flatten().float(), fit

    def _accumulate(self, x: Tensor, y: Tensor) -> None:
        if self._shift is None:  # centred sums do not lose digits to large means
            self._shift = (x.mean(1), y.mean(1))
        x, y = x - self._shift[0].unsqueeze(1), y - self._shift[1].unsqueeze(1)
        for key, value in (
            ("x", x.sum(1)),
            ("y", y.sum(1)),
            ("xx", x.mT @ x),
            ("xy", x.mT @ y),
            ("yy", y.square().sum(1)),
        ):
            self._sums[key] = self._sums[key].to(value.device) + value.double()

    def _features(self, seen: Tensor, target: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Rows ``[groups, samples, features]`` and ``[groups, samples, outputs]`` of one batch, at sampled places."""
        if isinstance(self.layer, nn.Linear):
            return seen.reshape(1, -1, seen.shape[-1]), target.reshape(1, -1, target.shape[-1])
        target = target.flatten(2)
        places = target.shape[2]
        chosen: Tensor | None = None
        if places > self.settings.places:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + batch)
            chosen = torch.randperm(places, generator=generator)[: self.settings.places].to(target.device)
            target = target[:, :, chosen]
        patches = _patches(seen, self.layer, chosen)
        x = patches.view(len(patches), self.groups, -1, patches.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
        y = target.view(len(target), self.groups, -1, target.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
        return x, y


def _patches(seen: Tensor, layer: nn.Conv2d, places: Tensor | None) -> Tensor:
    """The input patches of a convolution, ``[n, C taps, places]``: all, or those at flat output positions."""
    padding = (int(layer.padding[0]), int(layer.padding[1]))
    if places is None:
        return F.unfold(seen, layer.kernel_size, layer.dilation, padding, layer.stride)
    padded = F.pad(seen, (padding[1], padding[1], padding[0], padding[0]))
    width = padded.shape[3]
    (tall, wide), (down, across), (step_down, step_across) = layer.kernel_size, layer.dilation, layer.stride
    columns = (width - across * (wide - 1) - 1) // step_across + 1
    corner = (places // columns) * step_down * width + (places % columns) * step_across
    rows = torch.arange(tall, device=seen.device) * down * width
    taps = (rows.unsqueeze(1) + torch.arange(wide, device=seen.device) * across).flatten()
    index = (taps.unsqueeze(1) + corner).flatten()
    found = padded.flatten(2).index_select(2, index)
    return found.view(len(seen), -1, len(places))
