"""Open picture files safely, and convert them to the network's size and channels."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...common.errors import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
LARGEST_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs
ROUNDING = 1e-2
"""How far a pixel times 255 may be from a whole number: float16 pixels still are, other values rarely are by chance."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input.

    ``input_shape`` is (channels, height, width). A picture of another size is resized so that its shorter side is
    ``resize`` pixels (the input's, if None), then cropped at the centre. Values in [0, 1] are normalised by
    ``mean`` and ``std``, one number per channel.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels ``[n, C, H, W]``, uint8 or float in [0, 1], to the network's float32 input."""
        values = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()
        mean = torch.tensor(self.mean, device=values.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=values.device).view(1, -1, 1, 1)
        return (values - mean) / std

    def to_pixels(self, picture: Image.Image) -> Tensor:
        """Convert a PIL picture to uint8 ``[C, H, W]``.

        Raises:
            InputError: the network's input has neither 1 nor 3 channels.
        """
        channels, height, width = self.input_shape
        if channels not in (1, 3):
            raise InputError(
                f"Pictures have 1 or 3 channels; the model expects {channels}. Provide its images by --data file.py:function."
            )
        picture = _to_eight_bits(picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height) or self.resize is not None:
            short = self.resize or max(height, width)
            scale = short / min(picture.size)
            size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
            if size != picture.size:
                picture = picture.resize(size, Image.Resampling.BILINEAR)
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        array = np.asarray(picture, dtype=np.uint8)
        return torch.from_numpy(array.copy()).reshape(height, width, channels).permute(2, 0, 1)


def eight_bits(pixels: Tensor) -> Tensor:
    """Pixels, uint8 or float in [0, 1], as uint8.

    Raises:
        InputError: float pixels are not multiples of 1/255, so they come from no picture of eight bits.
    """
    if pixels.dtype == torch.uint8:
        return pixels
    levels = pixels.double() * 255
    rounded = levels.round()
    if not bool(((levels - rounded).abs() <= ROUNDING).all() and (rounded >= 0).all() and (rounded <= 255).all()):
        raise InputError(
            "These images are not pictures of eight bits: their pixels are not multiples of 1/255 in 0 to 1. Use pictures, or "
            "files with float32 input."
        )
    return rounded.to(torch.uint8)


def open_picture(path: Path) -> Image.Image:
    """Open and decode a picture file.

    Raises:
        InputError: the file is missing, truncated, corrupt, or too large to open safely.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                _check_size(path, picture)
                picture.load()
                return picture.copy()
    except FileNotFoundError as error:
        raise InputError(f"The image {path} does not exist.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"The image {path} cannot be read ({error}). Replace or remove it.") from error


def picture_mode(path: Path) -> str:
    """Pillow's mode of a picture file, from its header alone.

    Raises:
        InputError: the file is not a picture, or is too large to open safely.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                _check_size(path, picture)
                return picture.mode
    except Image.DecompressionBombError as error:
        raise InputError(f"The image {path} is too large to open safely: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"The image {path} cannot be read ({error}). Replace or remove it.") from error


def mode_notes(modes: Mapping[str, int], channels: int) -> tuple[str, ...]:
    """Notes for the report on conversions; ``modes`` counts the files of each of Pillow's modes."""
    wanted = "L" if channels == 1 else "RGB"
    words = {"L": "grey", "LA": "grey with alpha", "P": "palette", "1": "bilevel", "I": "16-bit grey"}
    words |= dict.fromkeys(("I;16", "I;16L", "I;16B"), "16-bit grey")
    return tuple(
        f"{count} images are {words.get(mode, mode)} and were converted to {'grey' if channels == 1 else 'RGB'}."
        for mode, count in sorted(modes.items())
        if mode != wanted
    )


def in_words(shape: Iterable[int]) -> str:
    """A shape as in messages: ``3x32x32``."""
    return "x".join(str(size) for size in shape)


def _check_size(path: Path, picture: Image.Image) -> None:
    if picture.mode == "F":
        raise InputError(f"The image {path} has floating-point pixels of unknown range. Save it with 8 or 16 bits.")
    if picture.width * picture.height > LARGEST_PIXELS:
        megapixels = picture.width * picture.height / 1e6
        raise InputError(
            f"The image {path} has {megapixels:.0f} megapixels; at most {LARGEST_PIXELS / 1e6:.0f} are read. Resize it."
        )


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I;16", "I;16L", "I;16B", "I"):
        values = np.asarray(picture).astype(np.int64)
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8), mode="L")
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture
