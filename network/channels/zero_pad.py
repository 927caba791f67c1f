"""Zero-padded channels as a layer that torch-pruning can follow and cut."""

import copy
from collections.abc import Sequence

import torch
import torch_pruning
from torch import Tensor, nn

from ...common.errors import InputError
from ..graph.leaf_modules import ZeroPadChannels
from ..graph.trace import has_channel_padding, trace


def followable(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy that torch-pruning can follow: channel padding is a module, and all parameters require gradients.

    Groups and cuts use this copy's layer names, which are the network's own apart from the padding modules.
    """
    result = copy.deepcopy(module).eval()
    if not any(isinstance(child, ZeroPadChannels) for child in result.modules()):
        try:
            traced = trace(result, example)
        except InputError:
            traced = None  # torch-pruning follows autograd, so that the tests of ``locks`` find and lock any padding
        if traced is not None and has_channel_padding(traced):
            result = traced.eval()
            with torch.no_grad():
                result(example)
    return result.requires_grad_(True)


class _PadPruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """Lets torch-pruning remove channels of :class:`ZeroPadChannels`, whose inputs and outputs are counted separately."""

    TARGET_MODULES = ZeroPadChannels

    def prune_out_channels(self, layer: ZeroPadChannels, idxs: Sequence[int]) -> nn.Module:
        layer.drop_outputs(list(idxs))
        return layer

    def prune_in_channels(self, layer: ZeroPadChannels, idxs: Sequence[int]) -> nn.Module:
        layer.drop_inputs(list(idxs))
        return layer

    def get_out_channels(self, layer: ZeroPadChannels) -> int:
        return layer.out_channels

    def get_in_channels(self, layer: ZeroPadChannels) -> int:
        return layer.in_channels


PAD_PRUNER = _PadPruner()
