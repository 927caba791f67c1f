"""Groups of coupled channels from the labels of a network's layers."""

from collections import defaultdict
from collections.abc import Sequence

from scipy.cluster.hierarchy import DisjointSet
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..provenance.labelling import Labelling
from ..provenance.parts import Part
from .group import ChannelGroup, Member
from .units import kind_of


def groups_of(labelling: Labelling, module: nn.Module) -> list[ChannelGroup]:
    """The groups of a network, in its order: layers whose kernels produce the same channels, and all that reads or carries
    them.

    Args:
        labelling: of the traced network.
        module: the network whose layers the labels belong to.
    """
    modules = dict(module.named_modules())
    order = {name: place for place, name in enumerate(modules)}
    producers = sorted(
        (
            part
            for part in labelling.parts
            if part.side == "out" and isinstance(modules.get(part.layer), _ConvNd | nn.Linear)
        ),
        key=lambda part: order[part.layer],
    )
    together: DisjointSet = DisjointSet(part.layer for part in producers)
    first: dict[int, str] = {}
    for part in producers:
        for label in _labels(part):
            together.merge(first.setdefault(label, part.layer), part.layer)
    parts_of: dict[str, list[Part]] = defaultdict(list)
    for part in producers:
        parts_of[together[part.layer]].append(part)
    return [
        _group(parts, labelling, modules)
        for parts in parts_of.values()
        if any(bool(part.labels.any()) for part in parts)
    ]


def _labels(part: Part) -> list[int]:
    """A layer's labels in the order of its channels, each once."""
    return [label for label in dict.fromkeys(part.labels.tolist()) if label]


def _group(producers: Sequence[Part], labelling: Labelling, modules: dict[str, nn.Module]) -> ChannelGroup:
    units = list(dict.fromkeys(label for part in producers for label in _labels(part)))
    unit_of = {label: unit for unit, label in enumerate(units)}
    named = [part.layer for part in producers]
    rest = [part for part in labelling.parts if not (part.side == "out" and part.layer in named)]
    members = [
        _member(part, unit_of, modules)
        for part in (producers[0], *reversed(producers[1:]), *rest)
        if any(label in unit_of for label in _labels(part))
    ]
    locked = next((labelling.locked[label] for label in units if label in labelling.locked), "")
    if len(units) < 2:
        locked = locked or "it has a single unit."
    stream = any(label in labelling.summed for label in units)
    return ChannelGroup(producers[0].layer, tuple(members), locked, stream)


def _member(part: Part, unit_of: dict[int, int], modules: dict[str, nn.Module]) -> Member:
    channels: list[list[int]] = [[] for _ in unit_of]
    for channel, label in enumerate(part.labels.tolist()):
        if label in unit_of:
            channels[unit_of[label]].append(channel)
    kind = kind_of(modules[part.layer]) if part.layer in modules else "parameter"
    by_unit = tuple(map(tuple, channels))
    return Member(part.layer, part.side, kind, len(part.labels), by_unit, part.dim if kind == "parameter" else None)
