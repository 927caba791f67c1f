"""A network as if channels were gone, by hooks of its own."""

import contextlib

import torch
from torch import nn


@contextlib.contextmanager
def without(module, groups, removed):
    """The network with the channels of removed units at zero where they are read."""
    handles = []
    for group in groups:
        for member in (member for member in group.members if member.side == "in" and group.name in removed):
            layer = module.get_submodule(member.layer)
            dim = -1 if isinstance(layer, nn.Linear) else getattr(layer, "dim", 1)
            channels = torch.tensor(
                [c for unit in removed[group.name] for c in member.channels[unit]], dtype=torch.long
            )

            def zero(_layer, inputs, channels=channels, dim=dim):
                return (inputs[0].index_fill(dim, channels, 0), *inputs[1:])

            handles.append(layer.register_forward_pre_hook(zero))
    modules = dict(module.named_modules())
    for group in (group for group in groups if group.name in removed and not group.consumers):  # queries and keys
        for member in (member for member in group.members if member.layer in modules):
            channels = torch.tensor([c for unit in removed[group.name] for c in member.channels[unit]])
            dim = -1 if isinstance(modules[member.layer], nn.Linear) else 1

            def silence(_layer, _inputs, output, channels=channels, dim=dim):
                return output.index_fill(dim, channels, 0)

            handles.append(modules[member.layer].register_forward_hook(silence))
    yield module
    for handle in handles:
        handle.remove()
