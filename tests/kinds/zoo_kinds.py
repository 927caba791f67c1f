"""Small networks, one for every kind that people bring: each takes 32-pixel images and tells ten classes apart.

``KINDS`` has a factory for each name, also a function of this file: ``--model tests/kinds/zoo_kinds.py:c2f``. ``build``
gives the network with seeded weights and the statistics of a trained one.
"""

import kinds_attention
import kinds_blocks
import kinds_heads
import kinds_moves
import kinds_tensors
import kinds_weights
import torch
from torch import nn

from kinds_frame import INPUT_SHAPE, settle

NORMALISATION = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}
LAZY = kinds_heads.LAZY
_FILES = (kinds_weights, kinds_moves, kinds_attention, kinds_tensors, kinds_heads, kinds_blocks)
KINDS = {name: factory for file in _FILES for name, factory in file.KINDS.items()}
globals().update(KINDS)


def build(name: str, seed: int = 0) -> nn.Module:
    """The network of a kind, in evaluation mode; lazy layers take their shapes from an image of zeros."""
    torch.manual_seed(seed)
    module = KINDS[name]()
    if name in LAZY:
        module.eval()(torch.zeros(1, *INPUT_SHAPE))
    return settle(module).eval()
