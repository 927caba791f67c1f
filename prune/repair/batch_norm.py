"""Re-estimation of BatchNorm statistics on calibration images."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...network.images.images import Images


def reestimate_norms(
    module: nn.Module,
    images: Images,
    device: str = "cpu",
    batch_size: int = 128,
    step: Callable[[int], None] = lambda count: None,
) -> tuple[str, ...]:
    """Set the running statistics of every BatchNorm to their plain average over batches of ``images``, in place.

    Args:
        step: called after each batch with its number of images.

    Returns:
        The names of the BatchNorms; empty if there are none, or fewer than two images.
    """
    norms = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats
    }
    if not norms or len(images) < 2:
        return ()
    momenta = {name: norm.momentum for name, norm in norms.items()}
    module.to(device).eval()
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # a plain average in place of a moving one
            norm.train()
        with torch.no_grad():
            for batch, labels in images.batches(batch_size):
                if len(labels) > 1:  # one image has no variance
                    module(batch.to(device))
                step(len(labels))
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.eval()
        module.to("cpu")
    return tuple(norms)
