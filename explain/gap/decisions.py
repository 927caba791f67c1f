"""Decisions that a decomposition explains: those asked for, and the rows of decisions it works through on its way down."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...common.errors import InputError
from ...network.hooks import pick_logits


@dataclass(frozen=True)
class ClassDecision:
    """The logit of a class, one per image: ``classes`` is int64 ``[images]``."""

    classes: Tensor


@dataclass(frozen=True)
class KernelDecision:
    """A kernel at a place of its map, one per image.

    ``layer`` is the layer or block that outputs the map; ``kernels``, ``rows`` and ``columns`` are int64 ``[images]``.
    """

    layer: str
    kernels: Tensor
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class DecisionRows:
    """Decisions in the output of one node, one per row.

    ``image`` is each decision's image, int64 ``[rows]``; ``index`` its place in the output (class; or kernel, row and column),
    int64 ``[rows]`` each; ``importance`` its share of the decision at the root, ``[rows]``.
    """

    image: Tensor
    index: tuple[Tensor, ...]
    importance: Tensor

    def unique(self) -> tuple["DecisionRows", Tensor]:
        """Every distinct decision once, with the summed importance of its rows; and the distinct decision of each row."""
        keys = torch.stack([self.image, *self.index], 1)
        distinct, inverse = torch.unique(keys, dim=0, return_inverse=True)
        importance = torch.zeros(len(distinct)).to(keys.device).index_add_(0, inverse, self.importance)
        return replace(self, image=distinct[:, 0], index=tuple(distinct[:, 1:].T), importance=importance), inverse

    def part(self, start: int, stop: int) -> "DecisionRows":
        """The rows from ``start`` up to, not including, ``stop``."""
        index = tuple(values[start:stop] for values in self.index)
        return replace(self, image=self.image[start:stop], index=index, importance=self.importance[start:stop])

    def values(self, output: object) -> Tensor:
        """The value of each decision, ``[rows]``, in an output that was computed row by row."""
        values = pick_logits(output) if len(self.index) == 1 else output
        assert isinstance(values, Tensor)
        return values[(torch.arange(len(self.image), device=values.device), *self.index)]


def first_decisions(decision: ClassDecision | KernelDecision | None, output: object, images: Tensor) -> DecisionRows:
    """One row per image, each of importance 1, for the decisions asked for; the predicted class where none was.

    Args:
        decision: what to explain.
        output: what the decision's node outputs for these images.
        images: int64 ``[n]``, the images' indices, on the device of the output.

    Raises:
        InputError: not one decision per image, or a class, kernel or place that does not exist.
    """
    if isinstance(decision, KernelDecision):
        assert isinstance(output, Tensor)
        named = {"kernel": decision.kernels, "row": decision.rows, "column": decision.columns}
        index = [
            _checked(f"{decision.layer}: {what}", values, size, len(images))
            for (what, values), size in zip(named.items(), output.shape[1:], strict=True)
        ]
    else:
        logits = pick_logits(output)
        classes = logits.argmax(1) if decision is None else decision.classes
        index = [_checked("class", classes, logits.shape[1], len(images))]
    return DecisionRows(images, tuple(part.to(images) for part in index), torch.ones(len(images)).to(images.device))


def _checked(what: str, values: Tensor, size: int, images: int) -> Tensor:
    if values.shape != (images,):
        raise InputError(
            f"{what}: expected one number for each of the {images} images, got shape {tuple(values.shape)}."
        )
    if images:
        least, most = int(values.min()), int(values.max())
        if least < 0 or most >= size:
            got = f"{least} to {most}" if least < most else f"{least}"
            raise InputError(f"{what} must be between 0 and {size - 1} (got {got}).")
    return values
