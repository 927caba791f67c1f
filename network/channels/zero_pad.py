"""Zero-padded channels as a layer that torch-pruning can follow and cut."""

import copy
from collections.abc import Sequence

import torch_pruning
from torch import Tensor, nn

from ..graph.leaf_modules import ZeroPadChannels
from ..rewrites.plain import make_plain


def followable(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy that torch-pruning can follow: channel padding is a module, and all parameters require gradients.

    Groups and cuts use this copy's layer names, which are the network's own apart from the padding modules.
    """
    result = copy.deepcopy(make_plain(module, example).module).eval()
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
