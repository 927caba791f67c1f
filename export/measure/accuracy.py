"""Accuracy of ONNX files, overall and per class, and the drop between two.

For images without labels, these are agreement with the original network, whose predictions are used as labels.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import InputError
from ...network.images.images import Images
from ...network.intervals import Interval, paired_drop_interval, wilson_interval
from ..runtime.classifier import read_classifier
from ..runtime.session import open_session

MEASURES = {"labels": "top-1 accuracy", "original": "agreement with the original"}
"""The name of the share of correct predictions, by what they are compared with."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy in [0, 1] of a file on images, with Wilson's 95% interval, and per class (None for a class without
    images).
    """

    accuracy: float
    interval: Interval
    per_class: dict[str, float | None]
    predictions: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "predictions": self.predictions.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Accuracy":
        predictions = np.array(values["predictions"], dtype=np.int64)
        return cls(values["accuracy"], Interval(**values["interval"]), values["per_class"], predictions)


def pack_correct(correct: NDArray[np.bool_]) -> str:
    """Which images ``[n]`` were classified correctly, eight to a byte, as base64, for a paired comparison with a later run."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def unpack_correct(text: str, images: int) -> NDArray[np.bool_]:
    """The inverse of :func:`pack_correct`.

    Raises:
        ValueError: not base64, or for another number of images.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(packed) != (images + 7) // 8:
        raise ValueError(f"{len(packed)} bytes for {images} images")
    return np.unpackbits(packed, count=images).astype(np.bool_)


@dataclass(frozen=True)
class Drop:
    """Percentage points of top-1 accuracy lost, positive when the pruned file is worse, with a paired bootstrap 95%
    interval.
    """

    points: float
    low: float
    high: float
    images: int


def measure_accuracy(
    path: Path,
    images: Images,
    class_names: Sequence[str],
    provider: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Classify all images with an ONNX file.

    Raises:
        InputError: the file does not accept these images (one that takes pixels: images that are not of eight bits), or outputs
            another number of classes.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> from pathlib import Path
        >>> path = secateur.export_onnx(network, Path("digits.onnx")).path
        >>> found = secateur.measure_accuracy(path, images.test, network.class_names)
        >>> f"{100 * found.accuracy:.2f}%"
        '99.44%'
    """
    classifier, session = read_classifier(path), open_session(path, provider).session
    _, height, width = images.preprocessing.input_shape
    batch_size = classifier.batch or max(1, min(256, 2**22 // (height * width)))
    predictions = []
    done = 0
    for batch in classifier.batches(images, batch_size):
        scores = classifier.run(session, batch)
        if scores.shape[1] != len(class_names):
            raise InputError(
                f"{path} gives {scores.shape} for {len(batch)} images; expected scores of {len(class_names)} classes "
                "for each. Use images of the model's own classes."
            )
        predictions.append(scores.argmax(1))
        done += len(batch)
        progress(done, len(images))
    return accuracy_of(np.concatenate(predictions).astype(np.int64), images, class_names)


def accuracy_of(predicted: NDArray[np.int64], images: Images, class_names: Sequence[str]) -> Accuracy:
    """Accuracy of predictions ``[n]`` against the labels of the images."""
    labels = images.labels.numpy()
    correct = predicted == labels
    per_class = {
        name: float(correct[labels == label].mean()) if (labels == label).any() else None
        for label, name in enumerate(class_names)
    }
    return Accuracy(float(correct.mean()), wilson_interval(int(correct.sum()), len(correct)), per_class, predicted)


def measure_drop(baseline: Accuracy, pruned: Accuracy, images: Images, seed: int = 0) -> Drop:
    """The drop from one file to another on the same images."""
    labels = images.labels.numpy()
    before, after = baseline.predictions == labels, pruned.predictions == labels
    interval = paired_drop_interval(before, after, seed)
    return Drop(100 * float(before.mean() - after.mean()), interval.low, interval.high, len(labels))
