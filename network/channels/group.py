"""Groups of coupled channels: what must be cut together."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["out", "in"]


@dataclass(frozen=True)
class Member:
    """One layer's part in a group: for every unit of the group, the channels of the layer that go with it.

    ``side`` is "out" for what a layer makes (a norm's channels too), "in" for what it reads. ``kind``: conv, depthwise,
    linear, norm, mixing_norm (normalises across channels), pad, parameter or other. ``width`` is the layer's own count.
    """

    layer: str
    side: Side
    kind: str
    width: int
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """All units of one coupling, named after the first layer that makes its channels.

    A unit is what must be removed together. ``locked`` says why none may go; it is empty where units may. ``stream``: the
    channels pass through a sum of branches, as a residual stream does, so that many layers write and read each unit.
    ``branch`` names the last layer of the residual branch that the group lies in, if that may go whole: all groups of one
    branch may lose all their units together, and the last layer then gives a constant.
    """

    name: str
    members: tuple[Member, ...]
    locked: str = ""
    stream: bool = False
    branch: str = ""

    @property
    def ends_branch(self) -> bool:
        """Whether the last layer of the group's branch reads the group's own units."""
        return any(member.layer == self.branch for member in self.consumers)

    @property
    def units(self) -> int:
        return len(self.members[0].channels)

    @property
    def producers(self) -> tuple[Member, ...]:
        """The layers whose kernels the units are."""
        return tuple(m for m in self.members if m.side == "out" and m.kind in ("conv", "depthwise", "linear"))

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The layers that read the units."""
        return tuple(m for m in self.members if m.side == "in")
