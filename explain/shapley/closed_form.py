"""The two games whose Shapley values have a closed form: a sum over players, and a game of two players per channel."""

import functools
from collections.abc import Callable, Iterator
from itertools import accumulate

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ...network.graph.channel_origins import NONE, Site
from ...network.graph.topology import GATE, JOIN, Target, Topology, own_modules

VALUE_BYTES = 2**25
"""For the values ``[images, channels, candidates]`` in memory at a time."""

ROUNDING = 2e-6
"""Relative to a sum of distances in float32: smaller remainders after cancellation are rounding errors."""

Readers = list[tuple[fx.Node, Callable[[Tensor], None]]]


class Game:
    """The game of one target: reads values from a forward pass, and returns the Shapley values for the last reading.

    ``sources`` are the sites whose channels are the players, one after the other; ``players``, int64 ``[channels,
    candidates]``, gives the player of each value; ``explainer`` names the origin of the values.
    """

    sources: tuple[str, ...]
    players: Tensor
    explainer: str = "closed form"

    def readers(self) -> Readers:
        """The nodes to read, with the functions to call with their values."""
        raise NotImplementedError

    def learn(self) -> None:
        """Use the last reading as the background."""
        raise NotImplementedError

    def values(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (first image, values ``[images, channels, candidates]``) for the last reading, part by part."""
        raise NotImplementedError


def game_of(view: fx.GraphModule, topology: Topology, target: Target) -> Game:
    """The game of a target whose links are exact."""
    if target.site.kind in (JOIN, GATE):
        return PairGame(view, topology, target)
    return SumGame(view, target)


class SumGame(Game):
    """A convolution or linear layer, whose output is a sum over its input channels."""

    def __init__(self, view: fx.GraphModule, target: Target) -> None:
        (operand,) = target.operands
        origin = operand.origin
        assert origin.players is not None
        self.sources = origin.sources
        self._node = operand.node
        module = view.get_submodule(str(target.site.node.target))
        assert isinstance(module, nn.Conv2d | nn.Linear)
        weight = module.weight.detach()
        self._module = module
        self._tap_matrix: Tensor | None = None
        weight = weight.flatten(2) if isinstance(module, nn.Conv2d) else weight.unsqueeze(2)  # [out, in / groups, taps]
        weight = weight * _scale(view, target.site).to(weight).view(-1, 1, 1)
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        out, inside, taps = weight.shape
        self._columns: Tensor | None = None
        if groups == 1:
            players, columns = _columns(origin.players)
            if not torch.equal(columns.flatten(), torch.arange(inside)) or columns.shape[1] != 1:
                self._columns = columns.to(weight.device)
                weight = _gathered(weight, self._columns)
            self.players = players.expand(out, -1)
            self._weight = weight.permute(1, 2, 0).contiguous()  # [players, taps, out]
        else:
            weight = weight.view(groups, out // groups, inside, taps).permute(0, 2, 3, 1)
            self._weight = weight.reshape(groups * inside, taps, out // groups)
            self.players = origin.players.view(groups, 1, inside).expand(-1, out // groups, -1).reshape(out, inside)
        self.players, self._into = _without_duplicates(self.players.to(weight.device))
        self._groups, self._out = groups, out
        self._seen: Tensor | None = None
        self._average: Tensor | None = None

    def readers(self) -> Readers:
        return [(self._node, self._read)]

    def _read(self, value: Tensor) -> None:
        """Store the input of each tap in each channel, averaged over output positions: ``[n, in, taps]``."""
        if isinstance(self._module, nn.Linear):
            self._seen = value.flatten(1, -2).mean(1).unsqueeze(2) if value.dim() > 2 else value.unsqueeze(2)
            return
        height, width = value.shape[2:]
        if self._tap_matrix is None:
            self._tap_matrix = _tap_matrix(self._module, height, width).to(value)
        self._seen = (value.reshape(-1, height * width) @ self._tap_matrix).view(*value.shape[:2], -1)

    def learn(self) -> None:
        assert self._seen is not None
        self._average, self._seen = self._seen.double().mean(0).to(self._seen), None

    def values(self) -> Iterator[tuple[int, Tensor]]:
        assert self._seen is not None
        assert self._average is not None
        moved, self._seen = self._seen - self._average, None
        return self._parts(moved)

    def _parts(self, moved: Tensor) -> Iterator[tuple[int, Tensor]]:
        if self._columns is not None:
            moved = _gathered(moved, self._columns)
        step = _images_at_a_time(self.players)
        for start in range(0, len(moved), step):
            part = moved[start : start + step].transpose(0, 1)  # [players or channels, images, taps]
            found = torch.bmm(part, self._weight)  # [players or channels, images, channels of a group]
            if self._groups == 1:
                yield start, found.permute(1, 2, 0)
            else:
                found = found.view(self._groups, -1, *found.shape[1:]).permute(2, 0, 3, 1)
                yield start, _summed(found.reshape(found.shape[0], self._out, -1), self._into)


class PairGame(Game):
    """A join or gate ``g(u * s)``: two players per channel, one of each branch. ``g`` are the operations that act on it
    alone.
    """

    def __init__(self, view: fx.GraphModule, topology: Topology, target: Target) -> None:
        self.sources, self._nodes = target.sources, tuple(operand.node for operand in target.operands)
        widths = [topology.sites[name].channels for name in target.sources]
        first = dict(zip(target.sources, accumulate(widths, initial=0), strict=False))
        columns = []
        for operand in target.operands:
            assert operand.origin.players is not None
            place = [torch.arange(topology.sites[name].channels) + first[name] for name in operand.origin.sources]
            shown = torch.cat([*place, torch.tensor([NONE])])
            columns.append(shown[operand.origin.players])  # NONE is the last
        device = next((parameter.device for parameter in view.parameters()), torch.device("cpu"))
        self.players, self._into = _without_duplicates(torch.stack(columns, 1).to(device))
        self._product = target.site.kind == GATE
        self._after = own_modules(view, target.site)
        self._dim = target.site.dim
        self._maps: dict[int, Tensor] = {}
        self._background: tuple[Tensor, Tensor] | None = None
        self._values: Tensor | None = None
        acting = [module for module in self._after if not isinstance(module, nn.Dropout | nn.Dropout2d | nn.Identity)]
        self._linear = not acting
        self._relu = not self._product and len(acting) == 1 and isinstance(acting[0], nn.ReLU)

    def readers(self) -> Readers:
        return [(node, functools.partial(self._read, index)) for index, node in enumerate(self._nodes)]

    def _read(self, index: int, value: Tensor) -> None:
        self._maps[index] = value
        if len(self._maps) == len(self._nodes) and self._background is not None:
            first, second = self._whole_maps()
            self._values = _summed(torch.stack(self._played(first, second), 2), self._into)

    def _whole_maps(self) -> tuple[Tensor, Tensor]:
        """The maps of both branches, broadcast to the same shape, with channels second."""
        first, second = torch.broadcast_tensors(self._maps[0], self._maps[1])  # type: ignore[no-untyped-call]
        self._maps.clear()
        first, second = first.movedim(self._dim, 1), second.movedim(self._dim, 1)
        return first.reshape(*first.shape[:2], -1), second.reshape(*second.shape[:2], -1)

    def learn(self) -> None:
        first, second = (part.contiguous() for part in self._whole_maps())
        if self._linear:  # only averages are needed
            self._empty = self._mean(first, second).mean(0)
            first, second = first.mean(0, keepdim=True), second.mean(0, keepdim=True)
        else:
            self._empty = self._mean(first, second).double().mean(0).to(first)
        self._background = first, second

    def values(self) -> Iterator[tuple[int, Tensor]]:
        assert self._values is not None
        values, self._values = self._values, None
        step = _images_at_a_time(self.players)
        return ((start, values[start : start + step]) for start in range(0, len(values), step))

    def _played(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """The values of both branches, each ``[n, C]``."""
        assert self._background is not None
        both, none = self._mean(first, second), self._empty
        with_second = self._expected(second, self._background[0])
        with_first = self._expected(first, self._background[1])
        return [
            0.5 * ((both - with_second) + (with_first - none)),
            0.5 * ((both - with_first) + (with_second - none)),
        ]

    def _expected(self, maps: Tensor, other: Tensor) -> Tensor:
        """The mean of ``g`` over the other branch's background and positions, ``[n, C]``; ``maps`` is ``[n, C, P]``."""
        if self._relu:  # relu(a + b) = (a + b + |a + b|) / 2, and sums of |a + b| are distances
            between = torch.cdist(maps.transpose(0, 1), -other.transpose(0, 1), p=1.0).mean(2).T / maps.shape[2]
            found = 0.5 * (maps.mean(2) + other.mean((0, 2)) + between)
            return torch.where(
                found > ROUNDING * between, found, 0
            )  # zero for a dead channel: shares of noise are meaningless
        total = torch.zeros(maps.shape[:2], dtype=maps.dtype, device=maps.device)
        for each in other:
            total += self._mean(maps, each.unsqueeze(0))
        return total / len(other)

    def _mean(self, first: Tensor, second: Tensor) -> Tensor:
        """The mean of ``g`` over positions, ``[n, C]``."""
        value = first * second if self._product else first + second
        for module in self._after:
            if isinstance(module, _BatchNorm):  # for any number of dimensions that it requires
                statistics = module.running_mean, module.running_var
                value = F.batch_norm(value, *statistics, module.weight, module.bias, eps=module.eps)
            else:
                value = module(value)
        return value.mean(2)


def _images_at_a_time(players: Tensor) -> int:
    return max(1, VALUE_BYTES // (4 * max(1, players.numel())))


def _scale(view: fx.GraphModule, site: Site) -> Tensor:
    """The factor of each channel in the BatchNorm directly after a layer, ``[C]`` (1 without one)."""
    own = own_modules(view, site)
    norm = own[0] if own else None
    if not isinstance(norm, _BatchNorm) or norm.running_var is None:
        return torch.ones(site.channels)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach().double()


def _columns(players: Tensor) -> tuple[Tensor, Tensor]:
    """The players that occur, ascending, and for each the channels that depend on it, ``[players, most]``, padded with -1."""
    shown = (players != NONE).nonzero().squeeze(1)
    order = shown[players[shown].argsort(stable=True)]
    present, counts = torch.unique(players[order], return_counts=True)
    most = int(counts.max()) if len(counts) else 0
    columns = torch.full((len(present), most), -1)
    row = torch.arange(len(present)).repeat_interleave(counts)
    columns[row, torch.arange(len(order)) - (counts.cumsum(0) - counts)[row]] = order
    return present, columns


def _without_duplicates(players: Tensor) -> tuple[Tensor, Tensor | None]:
    """Players ``[channels, candidates]`` without duplicates per channel, and the index to add each value to; None without
    duplicates.
    """
    ordered = players.sort(1).values
    if not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)).any()):
        return players, None
    first = torch.stack([(row.unsqueeze(1) == row).int().argmax(1) for row in players])
    again = first != torch.arange(players.shape[1], device=players.device)
    return torch.where(again, NONE, players), first


def _summed(values: Tensor, into: Tensor | None) -> Tensor:
    """Values ``[images, channels, candidates]``, summed over duplicates of a player."""
    if into is None:
        return values
    return torch.zeros_like(values).scatter_add_(2, into.expand_as(values), values)


def _gathered(values: Tensor, columns: Tensor) -> Tensor:
    """``[n, channels, taps]`` to ``[n, players, most * taps]``, padded with zeros for players with fewer channels."""
    padded = F.pad(values, (0, 0, 0, 1))  # the last channel, which -1 means, is zero
    return padded[:, columns].flatten(2)


def _tap_matrix(module: nn.Conv2d, height: int, width: int) -> Tensor:
    """The share of output positions at which each tap reads each position of the map: ``[height * width, taps]``."""
    left, right, top, bottom = module._reversed_padding_repeated_twice
    mode = module.padding_mode
    rows = _tap_counts(height, (top, bottom), mode, module.kernel_size[0], module.stride[0], module.dilation[0])
    columns = _tap_counts(width, (left, right), mode, module.kernel_size[1], module.stride[1], module.dilation[1])
    return torch.einsum("hu,wv->hwuv", rows, columns).reshape(height * width, -1)


def _tap_counts(size: int, padding: tuple[int, int], mode: str, kernel: int, stride: int, dilation: int) -> Tensor:
    """The same along one side, ``[size, kernel]``, float64."""
    own = torch.arange(1.0, size + 1).view(1, 1, -1)  # from 1 on: zero padding is 0
    seen = (F.pad(own, padding) if mode == "zeros" else F.pad(own, padding, mode=mode)).flatten().long()
    places = (len(seen) - dilation * (kernel - 1) - 1) // stride + 1
    at = torch.arange(places).unsqueeze(1) * stride + torch.arange(kernel) * dilation
    counts = torch.nn.functional.one_hot(seen[at], size + 1)[..., 1:]  # [places, kernel, size]
    return counts.sum(0).T.double() / places
