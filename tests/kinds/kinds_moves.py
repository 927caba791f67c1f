"""Channels that are split, gated, reordered, shuffled or moved to places and back."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinds_frame import WIDTH, Framed, conv


class Gated(nn.Module):
    """Halves of the channels, one gating the other: GLU, SimpleGate (NAFNet) and by slices."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.expand = nn.Conv2d(WIDTH, 48, 3, padding=1)
        self.gate = nn.GLU(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        if self.way == "function":
            return F.glu(x, 1)
        if self.way == "module":
            return self.gate(x)
        if self.way == "unpacked":
            first, second = x.chunk(2, dim=1)
            return first * second
        return x[:, :24] * torch.sigmoid(x[:, 24:])


class C2f(nn.Module):
    """YOLOv8's block: a list made of chunks, extended by blocks that each read the one before."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = conv(WIDTH, 16, 1)
        self.blocks = nn.ModuleList(conv(8, 8) for _ in range(2))
        self.last = conv(32, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        parts = list(x.chunk(2, 1)) if self.way == "chunk" else list(x.split((8, 8), 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        return self.last(torch.cat(parts, 1))


class Cascade(nn.Module):
    """Res2Net: each part takes the sum of its own channels and the part before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(WIDTH, 24, 1)
        self.convs = nn.ModuleList(conv(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.first(x), 6, 1)
        done = [parts[0]]
        for part, layer in zip(parts[1:], self.convs, strict=True):
            done.append(layer(part + done[-1]) if len(done) > 1 else layer(part))
        return torch.cat(done, 1)


class Reordered(nn.Module):
    """The same channels in another order."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = conv(WIDTH, 24)
        self.register_buffer("order", torch.randperm(24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "split":
            a, b, c = torch.split(x, [4, 12, 8], dim=1)
            return torch.cat([c, a, b], 1)
        if self.way == "iterated":
            return torch.cat([part * (index + 1) for index, part in enumerate(x.split(6, 1))][::-1], 1)
        if self.way == "slices":
            return torch.cat([x[:, 10:], x[:, :10]], dim=1)
        if self.way == "strides":
            return torch.cat((x[:, 1::2], x[:, ::2]), 1)
        if self.way == "index":
            return x[:, self.order]
        if self.way == "narrow":
            return torch.cat([x.narrow(1, 16, 8), x.narrow(1, 0, 16)], 1)
        return x.flip(1) if self.way == "flip" else torch.roll(x, 5, 1)


class Every(nn.Module):
    """Only every second channel is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(WIDTH, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)[:, ::2]


class Ghost(nn.Module):
    """GhostNet: cheap depthwise kernels beside the first ones, and the surplus sliced off."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = conv(WIDTH, 13, 1)
        self.cheap = conv(13, 13, groups=13)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], dim=1)[:, :24]


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, channels, height, width = x.size()
    return x.view(n, groups, channels // groups, height, width).transpose(1, 2).contiguous().view(n, -1, height, width)


class Shuffled(nn.Module):
    """Grouped convolutions with a channel shuffle between (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = conv(WIDTH, 24, 1, groups=4), conv(24, 24, groups=24)
        self.last = conv(24, 24, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.depthwise(shuffle(self.first(x), 4)))


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels pass by, then both halves are shuffled; twice."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(conv(8, 8, 1), conv(8, 8, groups=8), conv(8, 8, 1)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            a, b = x.chunk(2, dim=1)
            x = shuffle(torch.cat((a, branch(b)), dim=1), 2)
        return x


class Maxout(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Conv2d(WIDTH, 48, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "chunks":
            return torch.max(*x.chunk(2, 1))
        n, channels, height, width = x.shape
        if self.way == "view":
            return x.view(n, 2, channels // 2, height, width).max(1)[0]
        return x.view(n, channels // 2, 2, height, width).amax(2)


class Places(nn.Module):
    """Channels become places (shuffle) or places channels (unshuffle)."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = conv(WIDTH, 32)
        self.up, self.down = nn.PixelShuffle(2), nn.PixelUnshuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, channels, height, width = x.shape
        if self.way == "shuffle":
            return F.pixel_shuffle(x, 2)
        if self.way == "shuffle module":
            return self.up(x)
        if self.way == "shuffle by hand":
            x = x.view(n, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
            return x.reshape(n, channels // 4, height * 2, width * 2)
        if self.way == "unshuffle":
            return F.pixel_unshuffle(x, 2)
        if self.way == "unshuffle module":
            return self.down(x)
        if self.way == "unshuffle by hand":
            x = x.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
            return x.reshape(n, channels * 4, height // 2, width // 2)
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]  # YOLOv5's Focus
        return torch.cat(parts, 1)


class BothSigns(nn.Module):
    """CReLU: every channel and its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return F.relu(torch.cat([x, -x], 1))


KINDS = {
    "glu": lambda: Framed(Gated("function"), 24),
    "glu_module": lambda: Framed(Gated("module"), 24),
    "simple_gate": lambda: Framed(Gated("unpacked"), 24),
    "gate_by_slices": lambda: Framed(Gated("slices"), 24),
    "c2f": lambda: Framed(C2f("chunk"), 24),
    "c2f_split": lambda: Framed(C2f("split"), 24),
    "res2net_cascade": lambda: Framed(Cascade(), 24),
    "split_reordered": lambda: Framed(Reordered("split"), 24),
    "split_iterated": lambda: Framed(Reordered("iterated"), 24),
    "slices_reordered": lambda: Framed(Reordered("slices"), 24),
    "strided_slices": lambda: Framed(Reordered("strides"), 24),
    "index_reordered": lambda: Framed(Reordered("index"), 24),
    "narrow_reordered": lambda: Framed(Reordered("narrow"), 24),
    "channels_flipped": lambda: Framed(Reordered("flip"), 24),
    "channels_rolled": lambda: Framed(Reordered("roll"), 24),
    "every_second_channel": lambda: Framed(Every(), 16),
    "ghost": lambda: Framed(Ghost(), 24),
    "channel_shuffle": lambda: Framed(Shuffled(), 24),
    "shuffle_unit": lambda: Framed(ShuffleUnit(), 16),
    "maxout_chunks": lambda: Framed(Maxout("chunks"), 24),
    "maxout_view": lambda: Framed(Maxout("view"), 24),
    "maxout_neighbours": lambda: Framed(Maxout("neighbours"), 24),
    "pixel_shuffle": lambda: Framed(Places("shuffle"), 8),
    "pixel_shuffle_module": lambda: Framed(Places("shuffle module"), 8),
    "pixel_shuffle_by_hand": lambda: Framed(Places("shuffle by hand"), 8),
    "pixel_unshuffle": lambda: Framed(Places("unshuffle"), 128),
    "pixel_unshuffle_module": lambda: Framed(Places("unshuffle module"), 128),
    "pixel_unshuffle_by_hand": lambda: Framed(Places("unshuffle by hand"), 128),
    "focus": lambda: Framed(Places("focus"), 128),
    "both_signs": lambda: Framed(BothSigns(), 24),
}
