"""Groups of coupled channels, which must be cut together."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["out", "in"]


@dataclass(frozen=True)
class Member:
    """One layer's part in a group: for every unit of the group, the channels of the layer that belong to it.

    ``side`` is "out" for channels that the layer produces (a norm's included), "in" for those that it reads. ``kind``: conv,
    depthwise, linear, norm, mixing_norm (normalises across channels), pad, select, parameter or other. ``width`` is the
    layer's number of channels on that side. ``dim`` is the dimension of a parameter's channels.
    """

    layer: str
    side: Side
    kind: str
    width: int
    channels: tuple[tuple[int, ...], ...]
    dim: int | None = None


@dataclass(frozen=True)
class ChannelGroup:
    """A group of coupled channels, named after the first layer that produces them.

    A unit is a set of channels that must be removed together. ``locked`` says why no unit may be removed; empty if they may.
    ``stream``: the channels pass through a sum of branches, such as a residual stream, so that several layers write and read
    each unit. ``branch`` names the last layer of the residual branch around the group if the branch may be removed whole: all
    its groups may lose all their units together, and its last layer then gives a constant.
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
        """The layers whose kernels produce the units."""
        return tuple(m for m in self.members if m.side == "out" and m.kind in ("conv", "depthwise", "linear"))

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The layers that read the units."""
        return tuple(m for m in self.members if m.side == "in")
