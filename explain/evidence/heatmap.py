"""Maps and gradients as pictures."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...common.errors import InputError, UsageError

ENLARGEMENTS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}


def overlay(
    values: Tensor,
    picture: Image.Image,
    *,
    signed: bool = False,
    alpha: float = 0.5,
    enlarge: str = "bilinear",
    scale: float | None = None,
) -> Image.Image:
    """Overlay a map ``[h, w]`` on a picture in colour; returns RGB of the picture's size.

    Unsigned maps are scaled from their minimum to their maximum in matplotlib's ``inferno``; signed ones symmetrically to
    their largest absolute value in ``RdBu_r``: blue for negative, white for zero, red for positive. ``alpha`` is the opacity
    of the colour over the picture in grey. A constant map has one colour (if signed, that of its value). With a ``scale``, an
    unsigned map is scaled from zero to it, so that several maps are comparable.

    Raises:
        InputError: the map holds NaN or infinity, or is not a matrix.
        UsageError: alpha is outside 0 to 1, or the interpolation is unknown.
    """
    if values.dim() != 2 or not bool(torch.isfinite(values).all()):
        raise InputError(f"Expected a map of height x width with finite values (got {list(values.shape)}).")
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha must be between 0 and 1 (got {alpha}).")
    if enlarge not in ENLARGEMENTS:
        raise UsageError(f"unknown interpolation {enlarge!r}. Expected {', '.join(ENLARGEMENTS)}.")
    from matplotlib import colormaps

    field = values.detach().cpu().float()
    if signed:
        position, colours = 0.5 + 0.5 * field / _largest(field), colormaps["RdBu_r"]
    elif scale is not None:
        position, colours = (field / scale).clamp(0, 1), colormaps["inferno"]
    else:
        position, colours = (field - field.min()) / _largest(field - field.min()), colormaps["inferno"]
    # Interpolate before colouring, since a mixture of two colours of the scale need not be on it.
    enlarged = Image.fromarray(position.numpy()).resize(picture.size, ENLARGEMENTS[enlarge])
    coloured = Image.fromarray((colours(np.asarray(enlarged))[..., :3] * 255).round().astype(np.uint8))
    return Image.blend(picture.convert("L").convert("RGB"), coloured, alpha)


def gradient_picture(gradient: Tensor) -> Image.Image:
    """A gradient of the pixels ``[C, H, W]``, of one or three channels, as RGB.

    Zero is mid-grey, the largest absolute value is black or full brightness.

    Raises:
        InputError: the gradient has another number of channels, NaN or infinity.
    """
    if gradient.dim() != 3 or len(gradient) not in (1, 3) or not bool(torch.isfinite(gradient).all()):
        shape = list(gradient.shape)
        raise InputError(f"Expected a finite gradient of 1 or 3 channels x height x width (got {shape}).")
    field = gradient.detach().cpu().float().expand(3, -1, -1)
    brightness = (127.5 + 127.5 * field / _largest(field)).round().to(torch.uint8)
    return Image.fromarray(brightness.permute(1, 2, 0).contiguous().numpy())


def pixels_picture(pixels: Tensor) -> Image.Image:
    """Pixels ``[C, H, W]``, of one or three channels, uint8 or float in [0, 1], as RGB.

    Raises:
        InputError: another number of channels.
    """
    if pixels.dim() != 3 or len(pixels) not in (1, 3):
        raise InputError(f"Expected pixels of 1 or 3 channels x height x width (got {list(pixels.shape)}).")
    brightness = pixels.detach().cpu()
    if brightness.dtype != torch.uint8:
        brightness = (brightness.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(brightness.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _largest(values: Tensor) -> float:
    """The largest absolute value; 1 if all are zero, so that it can be divided by."""
    return float(values.abs().max()) or 1.0
