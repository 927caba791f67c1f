"""Branches of residual sums that may be removed whole: the sum is then its other branch plus a constant."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from ..graph.leaf_modules import Add
from ..graph.reach import needed_for
from .group import ChannelGroup

REPLACEABLE = ("conv", "depthwise", "linear", "norm", "mixing_norm")


@dataclass(frozen=True)
class Branch:
    """A branch of a sum. Once all units of its ``groups`` are removed, its ``last`` layer gives a constant."""

    last: str
    groups: tuple[str, ...]


def find_branches(view: fx.GraphModule, groups: Sequence[ChannelGroup]) -> tuple[Branch, ...]:
    """The branches of sums in a traced network that may be removed whole, at most one for each sum.

    Nothing may pass through such a branch but the channels of groups that are not locked.
    """
    modules = dict(view.named_modules())
    calls = Counter(str(node.target) for node in view.graph.nodes if node.op == "call_module")
    found = []
    for join in view.graph.nodes:
        if join.op != "call_module" or not isinstance(modules[str(join.target)], Add):
            continue
        sources = [source for source in join.args if isinstance(source, fx.Node)]
        for end, other in (sources, reversed(sources)) if len(sources) == 2 else ():
            region = needed_for([end]) - needed_for([other])
            layers = _layers_of_its_own(end, join, region, modules, calls)
            branch = _branch(end, region, layers, groups, modules)
            if branch is not None:  # one per sum: without both branches nothing of the image would pass
                found.append(branch)
                break
    return tuple(found)


def _layers_of_its_own(
    end: fx.Node, join: fx.Node, region: set[fx.Node], modules: Mapping[str, nn.Module], calls: Mapping[str, int]
) -> set[str]:
    """The layers of a region; none if anything but ``join`` reads from it, or if it shares layers or contains sums."""
    if end not in region or any(user not in region and user is not join for node in region for user in node.users):
        return set()
    layers = {str(node.target) for node in region if node.op == "call_module"}
    if any(calls[layer] > 1 or isinstance(modules[layer], Add) for layer in layers):
        return set()
    return layers


def _branch(
    end: fx.Node,
    region: set[fx.Node],
    layers: set[str],
    groups: Sequence[ChannelGroup],
    modules: Mapping[str, nn.Module],
) -> Branch | None:
    """The branch that ends with ``end``, if removing the groups inside it leaves its last layer nothing to read."""
    inside = [
        group
        for group in groups
        if not group.locked and all(member.layer in layers and member.kind in REPLACEABLE for member in group.members)
    ]
    last = _last_layer(end, region, _starved(inside))
    made = {member.layer for group in inside for member in group.members if member.side == "out"}
    if last is None or last in made:
        return None
    feeding = [group for group in inside if any(member.layer == last for member in group.consumers)]
    if len(feeding) != 1 or not all(_keeps_places(modules[layer]) for layer in made | {last}):
        return None
    return Branch(last, tuple(group.name for group in inside))


def _starved(groups: Sequence[ChannelGroup]) -> set[str]:
    """The layers that have no channel left to read once all units of the groups are removed."""
    read: dict[str, set[int]] = defaultdict(set)
    widths: dict[str, int] = {}
    for member in (member for group in groups for member in group.consumers):
        read[member.layer].update(channel for unit in member.channels for channel in unit)
        widths[member.layer] = member.width
    return {layer for layer, channels in read.items() if len(channels) == widths[layer]}


def _last_layer(end: fx.Node, region: set[fx.Node], starved: set[str]) -> str | None:
    """The one starved layer on every path to ``end``; None if there are several, or a path around them."""

    def is_starved(node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target) in starved

    passed = needed_for([end], stop=is_starved)
    lasts = {str(node.target) for node in passed if is_starved(node)}
    return lasts.pop() if passed <= region and len(lasts) == 1 else None


def _keeps_places(layer: nn.Module) -> bool:
    """Whether a layer's output has one position for every ``stride``-th of its input, as its stand-in has."""
    if not isinstance(layer, nn.Conv2d):
        return not isinstance(layer, nn.ConvTranspose2d | nn.Conv1d | nn.Conv3d)
    if isinstance(layer.padding, str):
        return layer.padding == "same"
    sizes = zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)
    return all(2 * padding == dilation * (kernel - 1) for padding, dilation, kernel in sizes)
