"""Reconstruction: layers that read a cut layer are fitted, by least squares, to the outputs that they had before the cut.

Layers are fitted in network order. Inputs come from the network as cut and repaired so far, targets from the original (He et
al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017). Where a layer feeds a residual join, its target is
the original's value at the join minus the other branch in the cut network, so that errors do not accumulate along the stream.
No label is read.
"""

from collections.abc import Collection
from dataclasses import replace

import torch

from ...common.progress import Progress, silent
from ...network.channels.zero_pad import followable
from ...network.graph.pass_through import removed_branches, set_to_zero
from ...network.graph.trace import trace
from ...network.images.images import Images
from ...network.network import Network
from .activations import Stream
from .layer_fits import LayerFit, fit_layers, layers_behind
from .least_squares import ReconstructionSettings

MEMORY_BYTES = 2**30
"""The most bytes of stored activations for each network; the rest is computed again."""


def reconstruct(
    original: Network,
    pruned: Network,
    images: Images,
    settings: ReconstructionSettings | None = None,
    *,
    device: str = "cpu",
    batch_size: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    zeros: Collection[str] = (),
    progress: Progress = silent,
) -> tuple[Network, tuple[LayerFit, ...], int]:
    """Fit every convolution and linear layer behind the cut. Neither network passed in is changed.

    Layers that are called several times, transposed, or not padded with zeros keep their weights. Statistics are accumulated
    over batches, so memory does not grow with the number of images (see :class:`~secateur.prune.repair.activations.Stream`).

    Args:
        zeros: the constants of removed branches that are set to zero instead of the best constant; what is behind them is
            fitted to that.

    Returns:
        The repaired network, the fits in network order, and the number of images used.

    Raises:
        InputError: the network cannot be traced.
    """
    settings = settings or ReconstructionSettings()
    if batch_size is None:
        _, height, width = original.input_shape
        batch_size = max(1, min(64, 64 * 112 * 112 // (height * width)))
    module = followable(pruned.module, pruned.example(1))
    views = (
        trace(followable(original.module, original.example(1)), original.example()),
        trace(module, original.example()),
    )
    for branch in removed_branches(views[1]):
        if branch.layer in zeros:
            set_to_zero(views[1], branch)
            set_to_zero(module, branch)
    whole, small = (Stream(view.to(device), images, batch_size, memory_bytes) for view in views)
    cut = pruned.cuts[-1]
    with torch.no_grad():
        wanted = [node for node in layers_behind(small.view, cut) if node.target not in zeros]
        fits = fit_layers(whole, small, wanted, cut, settings, module, progress)
    return replace(pruned, module=module.eval()), fits, len(images)
