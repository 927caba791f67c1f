"""The inputs and outputs of any ONNX classifier: a batch of images in, one row of class scores per image out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import InputError
from .session import open_session

if TYPE_CHECKING:
    from ...network.images.images import Images

_TYPES: dict[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_INPUT_TYPES: dict[str, type[np.number[Any]]] = {**_TYPES, "tensor(uint8)": np.uint8}
_IMAGE_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Classifier:
    """The inputs and outputs of a file. Its images are normalised, or raw pixels in 0 to 255 if its input is uint8.

    ``image_shape`` is (channels, height, width), with None for a free size; ``batch`` is the only batch size that it accepts,
    or None; ``channels_last`` means that its input is NHWC. ``classes`` is None if the file leaves it open.
    """

    path: Path
    input_name: str
    input_type: type[np.number[Any]]
    image_shape: tuple[int | None, int | None, int | None]
    channels_last: bool
    batch: int | None
    output_name: str
    output_type: type[np.floating[Any]]
    classes: int | None
    notes: tuple[str, ...]

    @property
    def takes_pixels(self) -> bool:
        """Whether the file normalises by itself."""
        return self.input_type is np.uint8

    def batches(self, images: "Images", size: int) -> Iterator[NDArray[Any]]:
        """The images in order, ``[n, C, H, W]``, at most ``size`` at once: normalised, or as pixels if the file takes them.

        Raises:
            InputError: the file takes pixels, and the images are not pictures of eight bits.
        """
        import torch  # not at the top: the process that measures memory does without

        from ...network.images.pictures import eight_bits

        for start in range(0, len(images), size):
            pixels = images.pixels(torch.arange(start, min(start + size, len(images))))
            yield (eight_bits(pixels) if self.takes_pixels else images.preprocessing.normalise(pixels)).numpy()

    def feed(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Images ``[n, C, H, W]`` in the layout and type of the file's input, by its name."""
        if self.takes_pixels and images.dtype != np.uint8:
            raise ValueError(f"{self.path} takes pixels as uint8 (got {images.dtype}); see Classifier.batches.")
        values = images.transpose(0, 2, 3, 1) if self.channels_last else images
        return {self.input_name: np.ascontiguousarray(values, dtype=self.input_type)}

    def noise(self, batch: int, input_shape: tuple[int, int, int], seed: int = 0) -> NDArray[Any]:
        """Seeded noise ``[batch, C, H, W]`` as the file's images: normal, or uniform if it takes pixels."""
        return noise_images((batch, *input_shape), self.takes_pixels, seed)

    def outputs(self, images: NDArray[Any]) -> int:
        """The number of scores per image; found by one run on the CPU if the file leaves it open.

        Raises:
            InputError: the file does not accept these images or this batch size.
        """
        if self.batch is not None and self.batch != len(images):
            raise InputError(
                f"{self.path} only accepts batches of {self.batch} (got {len(images)}). "
                "Use that batch size, or export it with a free one."
            )
        self.sizes(images.shape[1:])
        if self.classes is not None:
            return self.classes
        return int(self.run(open_session(self.path, "cpu").session, images).shape[1])

    def run(self, session: Any, images: NDArray[Any]) -> NDArray[np.float32]:
        """Class scores ``[n, classes]``; a fixed batch size is filled up with the last image.

        Raises:
            InputError: the file rejects these images, or does not output one row per image.
        """
        count, size = len(images), self.batch or len(images)
        if count < size:
            images = np.concatenate([images, np.repeat(images[-1:], size - count, axis=0)])
        try:
            (found,) = session.run([self.output_name], self.feed(images))
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise InputError(f"{self.path} does not accept images of shape {images.shape}: {reason}") from error
        if found.ndim > 2 and all(length == 1 for length in found.shape[2:]):
            found = found.reshape(found.shape[:2])  # a head of 1x1 convolutions keeps its positions
        if found.ndim != 2 or len(found) != size:
            raise InputError(
                f"{self.path} gives {found.shape} as {self.output_name!r} for {size} images; [{size}, classes] expected."
            )
        return np.asarray(found[:count], dtype=np.float32)

    def sizes(self, given: Sequence[int] | None = None) -> tuple[int, int, int]:
        """The image shape, with free sizes taken from ``given`` (channels, height, width).

        Raises:
            InputError: a free size is not given, or a given size differs from the file's.
        """
        sizes = [
            own if own is not None else (given[place] if given else None) for place, own in enumerate(self.image_shape)
        ]
        if any(size is None for size in sizes):
            raise InputError(
                f"{self.path} leaves its image size open ({_shown(self.image_shape)}). Give it with --input-shape."
            )
        if given is not None and tuple(given) != tuple(sizes):
            raise InputError(f"{self.path} expects images of {_shown(sizes)} (got --input-shape {_shown(given)}).")
        channels, height, width = (int(size) for size in sizes if size is not None)
        return channels, height, width


def noise_images(shape: tuple[int, ...], pixels: bool, seed: int = 0) -> NDArray[Any]:
    """Seeded noise: standard normal as float32, or ``pixels`` as uint8."""
    generator = np.random.default_rng(seed)
    return (
        generator.integers(256, size=shape, dtype=np.uint8) if pixels else generator.standard_normal(shape, np.float32)
    )


def read_classifier(path: Path) -> Classifier:
    """Read the inputs and outputs of a file.

    Raises:
        InputError: it is not an ONNX model, its input is not one batch of images, or a type is not supported.
    """
    session = open_session(path, "cpu").session
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        found = "; ".join(f"{one.name!r} {_shown(one.shape)}" for one in inputs)
        raise InputError(
            f"{path} has {len(inputs)} inputs ({found}); expected one, a batch of images with four dimensions."
        )
    taken = inputs[0]
    if taken.type not in _INPUT_TYPES:
        raise InputError(
            f"{path} takes {taken.type} as {taken.name!r}; expected are normalised images as float, float16 or double, or "
            "pixels as uint8."
        )
    fixed = [size if isinstance(size, int) and size > 0 else None for size in taken.shape]
    channels_last = fixed[1] not in _IMAGE_CHANNELS and fixed[3] in _IMAGE_CHANNELS
    notes = []
    if channels_last:
        fixed = [fixed[0], fixed[3], fixed[1], fixed[2]]
        notes.append(f"{path.name} takes images with channels last; they are transposed for it before timing.")
    if len(outputs) > 1:
        others = ", ".join(repr(one.name) for one in outputs[1:])
        notes.append(f"{path.name} has {len(outputs)} outputs; {outputs[0].name!r} is read, not {others}.")
    if outputs[0].type not in _TYPES:
        raise InputError(
            f"{path} gives {outputs[0].type} as {outputs[0].name!r}; expected floating-point class scores."
        )
    given = outputs[0].shape
    classes = given[1] if given and len(given) >= 2 and isinstance(given[1], int) else None
    return Classifier(
        path,
        taken.name,
        _INPUT_TYPES[taken.type],
        (fixed[1], fixed[2], fixed[3]),
        channels_last,
        fixed[0],
        outputs[0].name,
        _TYPES[outputs[0].type],
        classes,
        tuple(notes),
    )


def _shown(sizes: Sequence[Any]) -> str:
    return ",".join("?" if size is None else str(size) for size in sizes)
