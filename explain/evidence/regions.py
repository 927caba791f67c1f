"""Regions of the input: boxes of pixels, the support of a gradient, the strong pixels of a map."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ...common.errors import InputError


@dataclass(frozen=True)
class Box:
    """A box of pixels of the network's input; ``right`` and ``bottom`` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def __str__(self) -> str:
        return f"({self.left}, {self.top}, {self.right}, {self.bottom})"


def supporting_region(gradient: Tensor, share: float = 0.0) -> Box:
    """The bounding box of the pixels whose absolute gradient ``[C, H, W]``, in any channel, is above ``share`` of the largest.

    With a share of 0, all non-zero pixels count.

    Raises:
        InputError: the gradient is zero everywhere.
    """
    size = gradient.detach().abs().amax(0)
    strong = (size > share * size.max()).cpu()
    if not bool(strong.any()):
        raise InputError("The gradient is zero at every pixel, so no region supports the decision.")
    rows, columns = strong.any(1).nonzero().flatten().tolist(), strong.any(0).nonzero().flatten().tolist()
    return Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def strong_pixels(activation: Tensor, height: int, width: int, share: float = 0.5) -> Tensor:
    """The pixels where an activation map ``[h, w]``, enlarged bilinearly, is above ``share`` of its maximum, bool ``[H, W]``.

    There are none for a map without positive values."""
    enlarged = F.interpolate(activation.detach()[None, None].float(), (height, width), mode="bilinear")[0, 0]
    return enlarged > share * enlarged.max().clamp(min=0)
