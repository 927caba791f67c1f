"""Find the groups of coupled channels, which must be cut together.

Labels that follow every channel through the network say which belong together; torch-pruning's dependency graph does where a
network cannot be traced. Every group is then tested: a group whose removal does not equal masking it is locked, with the
reason.
"""

from dataclasses import replace

from torch import Tensor, nn

from ...common.errors import InputError
from ..graph.trace import trace
from ..provenance.labelling import label_channels
from .branches import find_branches
from .dependency_graph import follow_groups
from .group import ChannelGroup
from .labelled_groups import groups_of
from .locks import difference, lock_overlaps, lock_shared_weights, try_out
from .zero_pad import followable


def find_groups(module: nn.Module, example: Tensor) -> tuple[ChannelGroup, ...]:
    """All groups of coupled channels of a network, in network order, each tested and locked where necessary.

    Args:
        module: the network; it is not changed.
        example: input of the network's shape, ``[n, C, H, W]``.

    Raises:
        InputError: neither torch.fx nor torch-pruning can follow the network; the message names the layer.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> groups = secateur.find_groups(network.module, network.example())
        >>> [(group.name, group.units) for group in groups][:2]
        [('stem.0', 32), ('block1.conv1', 32)]
        >>> [member.layer for member in groups[0].producers]  # a residual stream: cut together
        ['stem.0', 'block1.conv2']
        >>> groups[-1].locked
        'its units are the classes of the head.'
    """
    plain = followable(module, example[:1])
    try:
        groups = groups_of(label_channels(trace(plain, example[:1]), example), plain)
    except Exception:  # not traceable, or an operation of the user's that cannot be run on labels
        groups = follow_groups(plain, example)
    groups = lock_shared_weights(lock_overlaps(groups), plain)
    return _mark_branches(plain, try_out(plain, groups, example), example)


def _mark_branches(module: nn.Module, groups: tuple[ChannelGroup, ...], example: Tensor) -> tuple[ChannelGroup, ...]:
    """Mark the groups in branches that may be removed whole, after testing the removal."""
    try:
        view = trace(module, example)
    except InputError:
        return groups
    marked = {group.name: group for group in groups}
    branches = find_branches(view, groups)
    pending = [branches] if branches else []
    while pending:
        current = pending.pop()
        inside = [replace(marked[name], branch=branch.last) for branch in current for name in branch.groups]
        if not difference(module, inside, example, compare=True, whole=True):
            marked.update({group.name: group for group in inside})
        elif len(current) > 1:
            half = len(current) // 2
            pending += [current[half:], current[:half]]
    return tuple(marked[group.name] for group in groups)
