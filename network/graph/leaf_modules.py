"""Modules for functional calls in a traced network, which torch.fx does not trace into."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Add(nn.Module):
    """The sum of two branches: a residual join."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second


class Multiply(nn.Module):
    """The product of two branches: a gate, as in squeeze-and-excitation."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * second


class Concatenate(nn.Module):
    """The concatenation of branches along ``dim``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *branches: Tensor) -> Tensor:
        return torch.cat(branches, self.dim)


class ZeroPadChannels(nn.Module):
    """Zero channels before and after the input's: the parameter-free shortcut of CIFAR ResNets ("option A").

    ``source[j]`` is the input channel that output channel ``j`` copies, or -1 for none. A channel without a source is
    ``fill[j]`` instead: zero, or the value that a repair sets. Cutting channels edits both.
    """

    source: Tensor
    fill: Tensor

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.in_channels = -1
        self.register_buffer("source", torch.empty(0, dtype=torch.long))
        self.register_buffer("fill", torch.empty(0))

    @property
    def out_channels(self) -> int:
        return len(self.source)

    def settle(self, in_channels: int) -> None:
        """Set the number of input channels, which is known once the network has run."""
        none = torch.full((1,), -1)
        own = torch.arange(in_channels)
        self.in_channels = in_channels
        self.source = torch.cat([none.repeat(self.before), own, none.repeat(self.after)])
        self.fill = torch.zeros(len(self.source))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels < 0:
            self.settle(x.shape[1])
        if self.in_channels == self.out_channels - self.before - self.after:
            return F.pad(x, (0, 0, 0, 0, self.before, self.after))
        shown = (self.source >= 0).to(x.dtype).view(1, -1, 1, 1)
        return x.index_select(1, self.source.clamp(min=0)) * shown + self.fill.to(x.dtype).view(1, -1, 1, 1)

    def drop_inputs(self, channels: list[int]) -> None:
        """Remove input channels: outputs that copied them become their ``fill``."""
        kept = [channel for channel in range(self.in_channels) if channel not in set(channels)]
        place = {channel: index for index, channel in enumerate(kept)}
        self.source = torch.tensor([place.get(channel, -1) for channel in self.source.tolist()])
        self.in_channels = len(kept)
        self._forget_padding()

    def drop_outputs(self, channels: list[int]) -> None:
        """Remove output channels."""
        kept = torch.tensor([channel for channel in range(self.out_channels) if channel not in set(channels)])
        self.source, self.fill = self.source[kept], self.fill[kept]
        self._forget_padding()

    def _forget_padding(self) -> None:
        self.before = self.after = (
            self.out_channels + 1
        )  # never equal again, so that ``forward`` takes the general form


class SelectChannels(nn.Module):
    """Channels picked from the input's: a part of a split, a slice, or a shuffle.

    Output channel ``j`` along ``dim`` copies input channel ``source[j]``. Cutting channels edits ``source``.
    """

    source: Tensor

    def __init__(self, source: Tensor, in_channels: int, dim: int) -> None:
        super().__init__()
        self.in_channels, self.dim = in_channels, dim
        self.register_buffer("source", source.long())
        self._settle()

    @property
    def out_channels(self) -> int:
        return len(self.source)

    def _settle(self) -> None:
        count = len(self.source)
        first = int(self.source[0]) if count else 0
        self.start = first if torch.equal(self.source.cpu(), torch.arange(first, first + count)) else None

    def forward(self, x: Tensor) -> Tensor:
        if self.start is None:
            return x.index_select(self.dim, self.source)
        return x.narrow(self.dim, self.start, len(self.source))

    def drop_inputs(self, channels: list[int]) -> None:
        """Remove input channels and the output channels that copy them."""
        lost = set(channels)
        kept = [channel for channel in range(self.in_channels) if channel not in lost]
        place = {channel: index for index, channel in enumerate(kept)}
        left = [place[channel] for channel in self.source.tolist() if channel in place]
        self.source, self.in_channels = self.source.new_tensor(left), len(kept)
        self._settle()

    def extra_repr(self) -> str:
        return f"{self.in_channels} -> {self.out_channels}, dim={self.dim}"


class Normalize(nn.Module):
    """``F.normalize``: a value divided by its norm along ``dim``."""

    def __init__(self, p: float, dim: int, eps: float) -> None:
        super().__init__()
        self.p, self.dim, self.eps, self.dims = p, dim, eps, (dim,)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, self.p, self.dim, self.eps)


class ChannelMean(nn.Module):
    """The mean over ``dims``, the channels ``dim`` among them: the sum of those that are left by their first number."""

    def __init__(self, dims: tuple[int, ...], dim: int, count: int, keepdim: bool) -> None:
        super().__init__()
        self.dims, self.dim, self.count, self.keepdim = dims, dim, count, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims, self.keepdim) * (x.shape[self.dim] / self.count)
