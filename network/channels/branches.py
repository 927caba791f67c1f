"""Branches of residual joins that may go whole: without them the join is what its other branch gives, plus a constant."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from ..graph.leaf_modules import Add
from .group import ChannelGroup

REPLACEABLE = ("conv", "depthwise", "linear", "norm", "mixing_norm")


@dataclass(frozen=True)
class Branch:
    """``last`` is the layer whose output is constant once all units of the ``groups``, which lie in the branch, are gone."""

    last: str
    groups: tuple[str, ...]


def find_branches(view: fx.GraphModule, groups: Sequence[ChannelGroup]) -> tuple[Branch, ...]:
    """All branches of sums in a traced network through which nothing passes but what open groups carry."""
    modules = dict(view.named_modules())
    calls = Counter(str(node.target) for node in view.graph.nodes if node.op == "call_module")
    found = []
    for join in view.graph.nodes:
        if join.op != "call_module" or not isinstance(modules[str(join.target)], Add):
            continue
        sources = [source for source in join.args if isinstance(source, fx.Node)]
        for end, other in (sources, reversed(sources)) if len(sources) == 2 else ():
            region = _upstream(end) - _upstream(other)
            branch = _branch(end, join, region, groups, modules, calls)
            if branch is not None:  # one for a join: without both nothing of the image would pass
                found.append(branch)
                break
    return tuple(found)


def _upstream(node: fx.Node) -> set[fx.Node]:
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            pending += current.all_input_nodes
    return seen


def _branch(
    end: fx.Node,
    join: fx.Node,
    region: set[fx.Node],
    groups: Sequence[ChannelGroup],
    modules: Mapping[str, nn.Module],
    calls: Mapping[str, int],
) -> Branch | None:
    if end not in region or any(user not in region and user is not join for node in region for user in node.users):
        return None
    layers = {str(node.target) for node in region if node.op == "call_module"}
    if any(calls[layer] > 1 for layer in layers) or any(isinstance(modules[layer], Add) for layer in layers):
        return None
    inside = [
        group
        for group in groups
        if not group.locked and all(member.layer in layers and member.kind in REPLACEABLE for member in group.members)
    ]
    read: dict[str, set[int]] = defaultdict(set)
    widths: dict[str, int] = {}
    for member in (member for group in inside for member in group.consumers):
        read[member.layer].update(channel for unit in member.channels for channel in unit)
        widths[member.layer] = member.width
    starved = {layer for layer, channels in read.items() if len(channels) == widths[layer]}
    lasts: set[str] = set()
    pending, seen = [end], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" and node.target in starved:
            lasts.add(str(node.target))
        elif any(source not in region for source in node.all_input_nodes):
            return None
        else:
            pending += node.all_input_nodes
    feeding = [group for group in inside if any(member.layer in lasts for member in group.consumers)]
    made = {member.layer for group in inside for member in group.members if member.side == "out"}
    if len(lasts) != 1 or len(feeding) != 1 or lasts & made:
        return None
    if not all(_keeps_places(modules[layer]) for layer in made | lasts):
        return None
    return Branch(lasts.pop(), tuple(group.name for group in inside))


def _keeps_places(layer: nn.Module) -> bool:
    """Whether a layer's output has one place for every ``stride``-th of its input, as its stand-in will have."""
    if not isinstance(layer, nn.Conv2d):
        return not isinstance(layer, nn.ConvTranspose2d | nn.Conv1d | nn.Conv3d)
    if isinstance(layer.padding, str):
        return layer.padding == "same"
    sizes = zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for padding, dilation, kernel in sizes)
