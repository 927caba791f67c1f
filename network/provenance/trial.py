"""Whether an operation keeps channels apart, found by changing one channel after the other."""

from typing import Any

import torch
from torch import Tensor, fx

from ..graph.execution import run_node

MOST_CHANNELS = 4096


def keeps_channels(view: fx.GraphModule, node: fx.Node, source: fx.Node, values: dict[fx.Node, Any], dim: int) -> bool:
    """Whether each channel of a node's result, along ``dim``, depends on the same channel of ``source`` alone."""
    width = values[source].shape[dim]
    if width > MOST_CHANNELS:
        return False
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(values[source].shape, generator=generator).to(values[source])

    def run(value: Tensor) -> Tensor:
        result: Tensor = run_node(view, node, lambda read: value if read is source else values[read])
        return result

    with torch.no_grad():
        try:
            unchanged = run(base)
            for channel in range(width):
                for step in (16.0, -16.0):  # up and down: a maximum may hide one of them
                    changed = base.clone()
                    changed.select(dim, channel).add_(step)
                    moved = (run(changed) != unchanged).movedim(dim, 0).flatten(1).any(1)
                    moved[channel] = False
                    if bool(moved.any()):
                        return False
        except Exception:  # an operation of the user's may fail on values that it does not expect
            return False
    return True
