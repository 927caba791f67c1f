"""Occlusion: cover part of an image and measure the decision again (Zeiler and Fergus, ECCV 2014, section 4.2)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import InputError, UsageError
from ...network.hooks import frozen, pick_logits
from ...network.images.pictures import Preprocessing
from ...network.network import Network
from .regions import Box

FILLS = ("mean", "grey", "blur")


@dataclass(frozen=True)
class OcclusionEffect:
    """The effect of covering a region on the score of the class ``label``.

    Logits are class scores before the softmax, probabilities after it. ``box`` is the bounding box of the covered pixels,
    ``covered`` their share of the image. ``occluded`` is the covered image as given to the network, ``[C, H, W]``.
    """

    label: int
    fill: str
    box: Box
    covered: float
    logit_before: float
    logit_after: float
    probability_before: float
    probability_after: float
    predicted_before: int
    predicted_after: int
    occluded: Tensor


@dataclass(frozen=True)
class OcclusionMap:
    """The drop of a class's score by the position of a covering window, float32 ``[rows, columns]``.

    The window at ``(r, c)`` starts at pixel ``(r * stride, c * stride)`` and ends at the image's edge at the latest. A drop
    is the value for the whole image minus that with the window covered: of the logit, and of the probability.
    """

    label: int
    fill: str
    window: int
    stride: int
    logit_drops: Tensor
    probability_drops: Tensor

    def per_pixel(self, height: int, width: int) -> Tensor:
        """For each pixel of the image, the mean drop of the logit over the windows that cover it, ``[H, W]``."""
        total, count = torch.zeros(height, width), torch.zeros(height, width)
        for row, drops in enumerate(self.logit_drops):
            for column, drop in enumerate(drops):
                top, left = row * self.stride, column * self.stride
                total[top : top + self.window, left : left + self.window] += drop
                count[top : top + self.window, left : left + self.window] += 1
        return total / count


def occlude(image: Tensor, mask: Tensor, fill: str, preprocessing: Preprocessing) -> Tensor:
    """Cover the pixels of each mask, bool ``[n, H, W]``, in a normalised image ``[C, H, W]``; returns ``[n, C, H, W]``.

    Fills: ``mean``, the mean of the network's normalisation (zero after it); ``grey``, half of full brightness in every
    channel; ``blur``, the image blurred by a Gaussian with a standard deviation of a tenth of its shorter side.

    Raises:
        UsageError: the fill is unknown.
    """
    if fill == "mean":
        cover = torch.zeros_like(image)
    elif fill == "grey":
        grey = torch.full((1, *image.shape), 0.5, device=image.device)
        cover = preprocessing.normalise(grey)[0]
    elif fill == "blur":
        cover = _blurred(image, max(1.0, min(image.shape[1:]) / 10))
    else:
        raise UsageError(f"unknown fill {fill!r}. Expected {', '.join(FILLS)}.")
    return torch.where(mask.to(image.device).unsqueeze(1), cover, image)


def measure_occlusion(
    network: Network,
    image: Tensor,
    region: Box | Tensor,
    *,
    label: int | None = None,
    fill: str = "mean",
    device: str = "cpu",
) -> OcclusionEffect:
    """Cover a region of one normalised image ``[C, H, W]`` and measure the decision before and after.

    Args:
        network: unchanged.
        image: the image as given to the network.
        region: a box of pixels, or a mask, bool ``[H, W]`` (for an activation map, see ``strong_pixels``).
        label: the class that is measured; the predicted class of the whole image if None.
        fill: see ``occlude``.
        device: where the network runs.

    Raises:
        InputError: the region is empty or does not fit the image, or the class does not exist.
        UsageError: the fill is unknown.
    """
    mask = _mask(region, image.shape[1], image.shape[2])
    covered = occlude(image, mask.unsqueeze(0), fill, network.preprocessing)
    logits = _logits(network, [torch.cat([image.unsqueeze(0), covered])], device)
    label = _known(label, logits)
    probabilities = logits.softmax(1)
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    return OcclusionEffect(
        label=label,
        fill=fill,
        box=Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1),
        covered=float(mask.float().mean()),
        logit_before=float(logits[0, label]),
        logit_after=float(logits[1, label]),
        probability_before=float(probabilities[0, label]),
        probability_after=float(probabilities[1, label]),
        predicted_before=int(logits[0].argmax()),
        predicted_after=int(logits[1].argmax()),
        occluded=covered[0].cpu(),
    )


def occlusion_map(
    network: Network,
    image: Tensor,
    *,
    window: int,
    stride: int,
    label: int | None = None,
    fill: str = "mean",
    batch_size: int = 64,
    device: str = "cpu",
) -> OcclusionMap:
    """Slide a covering square over one normalised image ``[C, H, W]``; every pixel is covered at least once.

    Args:
        network: unchanged.
        image: the image as given to the network.
        window: the square's side in pixels.
        stride: pixels from one position to the next, at most ``window``.
        label: the class that is measured; the predicted class of the whole image if None.
        fill: see ``occlude``.
        batch_size: covered images in one pass.
        device: where the network runs.

    Raises:
        InputError: the class does not exist.
        UsageError: the window does not fit the image, the stride skips pixels, or the fill is unknown.
    """
    height, width = image.shape[1:]
    if not 1 <= window <= min(height, width):
        raise UsageError(f"the window must be 1 to {min(height, width)} pixels, the image's side (got {window}).")
    if not 1 <= stride <= window:
        raise UsageError(f"the stride must be 1 to {window} pixels, the window's side (got {stride}).")
    tops, lefts = (range(0, size - window + stride, stride) for size in (height, width))
    places = [(top, left) for top in tops for left in lefts]

    def covered() -> Iterator[Tensor]:
        yield image.unsqueeze(0)
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            masks = torch.zeros(len(part), height, width, dtype=torch.bool)
            for mask, (top, left) in zip(masks, part, strict=True):
                mask[top : top + window, left : left + window] = True
            yield occlude(image, masks, fill, network.preprocessing)

    logits = _logits(network, covered(), device)
    label = _known(label, logits)
    probabilities = logits.softmax(1)
    logit_drops, probability_drops = (
        (values[0, label] - values[1:, label]).view(len(tops), len(lefts)) for values in (logits, probabilities)
    )
    return OcclusionMap(label, fill, window, stride, logit_drops, probability_drops)


def _logits(network: Network, batches: Iterable[Tensor], device: str) -> Tensor:
    """Class scores of all batches, float32 on the CPU."""
    module = network.module if device == "cpu" else network.copy().module.to(device)
    with frozen(module), torch.no_grad():
        return torch.cat([pick_logits(module(batch.to(device))).float().cpu() for batch in batches])


def _known(label: int | None, logits: Tensor) -> int:
    """The label, or the predicted class of the first row."""
    if label is None:
        return int(logits[0].argmax())
    if not 0 <= label < logits.shape[1]:
        raise InputError(f"There is no class {label}; classes are 0 to {logits.shape[1] - 1}.")
    return label


def _mask(region: Box | Tensor, height: int, width: int) -> Tensor:
    """The region's pixels, bool ``[H, W]``."""
    if isinstance(region, Tensor):
        if region.shape != (height, width) or region.dtype != torch.bool:
            found = f"{region.dtype} of {'x'.join(map(str, region.shape))}"
            raise InputError(f"Expected a mask of torch.bool and {height}x{width} (height x width), got {found}.")
        if not bool(region.any()):
            raise InputError("The mask covers no pixels. Set at least one to True.")
        return region.cpu()
    if not (0 <= region.left < region.right <= width and 0 <= region.top < region.bottom <= height):
        raise InputError(
            f"The box {region} (left, top, right, bottom) is empty or outside the image of {width} columns and {height} rows. "
            "Give a box inside it."
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[region.top : region.bottom, region.left : region.right] = True
    return mask


def _blurred(image: Tensor, deviation: float) -> Tensor:
    """The image blurred by a Gaussian of this standard deviation in pixels, truncated at three of them, with replicated
    edges.
    """
    reach = math.ceil(3 * deviation)
    offsets = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    weights = torch.exp(-0.5 * (offsets / deviation).square())
    weights = (weights / weights.sum()).expand(image.shape[0], 1, 1, -1)
    padded = F.pad(image.unsqueeze(0), (reach, reach, reach, reach), mode="replicate")
    along_rows = F.conv2d(padded, weights, groups=image.shape[0])
    return F.conv2d(along_rows, weights.transpose(2, 3), groups=image.shape[0])[0]
