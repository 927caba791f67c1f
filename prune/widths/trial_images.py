"""The calibration images of a measurement: those that layers are fitted on, and those that the loss is measured on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...common.errors import InputError
from ...network.channels.group import ChannelGroup
from ...network.images.images import Images
from ...network.network import Network
from ..cost import measure_cost

MEMORY_BYTES, LIVE_MAPS = 2 * 2**30, 8
"""Memory for activations; an image is assumed to need this many maps of the largest size."""
SHARES = (0.75, 0.5, 0.25, 0.125)
"""The shares of a group's units at which it is measured."""
FITTED_IMAGES, JUDGED_IMAGES = 400, 400
WORK_MACS, FEWEST_IMAGES = 10_000_000_000_000, 64
"""Large networks with many groups get fewer images, so that the measurement stays near this many multiply-accumulates."""


def split_images(network: Network, groups: Sequence[ChannelGroup], images: Images) -> tuple[Images, Images]:
    """The images that layers are fitted on, and those that the loss is measured on: the first of each half.

    Raises:
        InputError: there are fewer than four images.
    """
    trials = len(SHARES) * sum(1 for group in groups if not group.locked)
    within_work = WORK_MACS // max(1, measure_cost(network).of({}).macs * trials)
    available = min(len(images), 2 * _affordable_images(network), max(FEWEST_IMAGES, within_work))
    if available < 4:
        raise InputError("Sensitivities need at least four calibration images; raise --calibration.")
    fitted, judged = min(FITTED_IMAGES, available // 2), min(JUDGED_IMAGES, available - available // 2)
    return images.subset(torch.arange(fitted)), images.subset(torch.arange(fitted, fitted + judged))


def _affordable_images(network: Network) -> int:
    """The number of images whose activations fit in ``MEMORY_BYTES``."""
    largest = 0

    def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [child.register_forward_hook(hook) for child in network.module.modules() if not list(child.children())]
    try:
        with torch.no_grad():
            network.module(network.example(1))
    finally:
        for handle in handles:
            handle.remove()
    return max(16, MEMORY_BYTES // (LIVE_MAPS * max(1, largest)))
