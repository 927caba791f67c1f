"""Many small pictures in one, to embed in a page: a grid of tiles as a data URL."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ...explain.evidence.heatmap import pixels_picture

LARGEST_SIDE = 16000  # pixels a side, below WebP's own limit
LOSSLESS_PIXELS = 2**21
QUALITY = 84


@dataclass(frozen=True)
class Sheet:
    """``source`` is a data URL; tiles of ``width`` x ``height`` pixels are stored row by row, ``columns`` per row."""

    source: str
    width: int
    height: int
    columns: int

    def to_json(self) -> dict[str, object]:
        return {"source": self.source, "width": self.width, "height": self.height, "columns": self.columns}


def make_sheet(tiles: Sequence[Image.Image], width: int, height: int) -> Sheet:
    """The tiles in order, each at the upper left of its cell; lossless if they are few or small.

    Raises:
        ValueError: there are more tiles than fit into one picture.
    """
    columns = max(1, min(math.ceil(math.sqrt(len(tiles) * height / width)), LARGEST_SIDE // width))
    rows = max(1, math.ceil(len(tiles) / columns))
    if rows * height > LARGEST_SIDE:
        raise ValueError(f"{len(tiles)} tiles of {width} x {height} pixels do not fit into one picture")
    whole = Image.new("RGB", (columns * width, rows * height), (127, 127, 127))
    for index, tile in enumerate(tiles):
        whole.paste(tile, (index % columns * width, index // columns * height))
    return Sheet(data_url(whole), width, height, columns)


def data_url(picture: Image.Image) -> str:
    """A picture as WebP in a ``data:`` URL."""
    buffer = io.BytesIO()
    lossless = picture.width * picture.height <= LOSSLESS_PIXELS
    picture.save(buffer, "WEBP", lossless=lossless, quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def drawable(pixels: Tensor) -> Tensor:
    """Pixels or gradients ``[C, H, W]`` of one or three channels; the mean of any other number of channels."""
    return pixels if len(pixels) in (1, 3) else pixels.float().mean(0, keepdim=True)


def picture_of(pixels: Tensor, longest: int) -> Image.Image:
    """Pixels ``[C, H, W]``, uint8 or float in [0, 1], as a picture, scaled down if a side exceeds ``longest``."""
    shown = drawable(pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels)
    return shrunk(pixels_picture(shown), longest)


def shrunk(picture: Image.Image, longest: int) -> Image.Image:
    """The picture, scaled down if a side exceeds ``longest``."""
    scale = longest / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
