"""Settings of the model and the data."""

import math
from dataclasses import dataclass

from ..common.checks import check_fraction, check_positive, check_whole, in_csv
from ..common.errors import UsageError
from ..common.settings import setting


@dataclass(frozen=True)
class ModelSettings:
    """Which network, and what it expects. ``input_shape`` is (channels, height, width)."""

    model: str = setting(
        "digits", "digits, a torchvision name, timm:NAME, FILE.py:FUNCTION, or a folder that secateur wrote."
    )
    weights: str | None = setting(None, "A safetensors file or torch checkpoint, or the name of torchvision weights.")
    input_shape: tuple[int, ...] | None = setting(
        None, "Channels, height and width, if the model does not declare them."
    )
    mean: tuple[float, ...] | None = setting(None, "Channel means of pixel values in 0 to 1.")
    std: tuple[float, ...] | None = setting(None, "Channel standard deviations of pixel values in 0 to 1.")
    output: str | None = setting(None, "Which of several outputs holds the class scores: an index or a name.")

    def __post_init__(self) -> None:
        if self.input_shape is not None:
            if len(self.input_shape) != 3:
                raise UsageError(f"input_shape must be channels,height,width (got {in_csv(self.input_shape)}).")
            for size in self.input_shape:
                check_whole("each number of input_shape", size, 1)
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std go together: give both or neither.")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise UsageError(
                    f"mean has {len(self.mean)} numbers and std has {len(self.std)}; both need one per channel."
                )
            for value in self.mean:
                if not math.isfinite(value):
                    raise UsageError(f"mean must be finite numbers (got {in_csv(self.mean)}).")
            for value in self.std:
                check_positive("each number of std", value)


@dataclass(frozen=True)
class DataSettings:
    """Which images to use.

    ``calibration`` is the number of training images for ranking and repair. ``validation_share`` is the fraction of the
    training images held out for validation if there is no ``val/``. ``keep_classes`` names the classes to keep, or
    ``drop_classes`` those to drop; without either, all classes are kept.
    """

    data: str | None = setting(
        None,
        "A folder with train/ and test/ (or of pictures only), cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, digits, or "
        "FILE.py:FUNCTION.",
    )
    calibration: int = setting(1000, "Training images in the calibration set, which ranks and repairs.")
    validation_share: float = setting(
        0.1, "Share of the training images used for validation if there is no val/ folder."
    )
    keep_classes: tuple[str, ...] | None = setting(None, "Classes to keep; the head and the images are cut to them.")
    drop_classes: tuple[str, ...] | None = setting(None, "Classes to drop, instead of those to keep.")

    def __post_init__(self) -> None:
        if self.keep_classes is not None and self.drop_classes is not None:
            raise UsageError("keep_classes and drop_classes exclude each other; give one of them.")
        for name in ("keep_classes", "drop_classes"):
            given = getattr(self, name)
            if given is not None and (not given or len(set(given)) != len(given)):
                raise UsageError(f"{name} must name one class or more, each once (got {', '.join(given) or 'none'}).")
        check_whole("calibration", self.calibration, 2)
        check_fraction("validation_share", self.validation_share)
