"""Attention: over channels, over places, with heads, as transformers build it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinds_frame import CLASSES, WIDTH, Framed, conv


class NonLocal(nn.Module):
    """Embedded Gaussian attention between all places (Wang et al. 2018), added to its input."""

    def __init__(self, width: int = 24, inner: int = 12) -> None:
        super().__init__()
        self.first = conv(WIDTH, width)
        self.theta, self.phi, self.g = (nn.Conv2d(width, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, _, height, width = x.shape
        theta = self.theta(x).view(n, -1, height * width).permute(0, 2, 1)
        weights = torch.softmax(torch.matmul(theta, self.phi(x).view(n, -1, height * width)), dim=-1)
        y = torch.matmul(weights, self.g(x).view(n, -1, height * width).permute(0, 2, 1))
        y = y.permute(0, 2, 1).contiguous().view(n, -1, height, width)
        return x + self.out(y)


class PlacesAttention(nn.Module):
    """Self-attention over places with heads; queries, keys and values from one 1 x 1 convolution."""

    def __init__(self, way: str, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.way, self.heads = way, heads
        self.first = conv(WIDTH, width, stride=2)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, channels, height, width = x.shape
        if self.way == "rearranged":
            q, k, v = self.qkv(x).reshape(n, 3, self.heads, channels // self.heads, height * width).unbind(1)
        else:
            q, k, v = (part.view(n, self.heads, -1, height * width) for part in self.qkv(x).chunk(3, 1))
        if self.way == "fused":
            y = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        else:
            weights = (q.transpose(-2, -1) @ k * (channels // self.heads) ** -0.5).softmax(-1)
            y = v @ weights.transpose(-2, -1)
        return x + self.out(y.reshape(n, channels, height, width))


class Multihead(nn.Module):
    """``nn.MultiheadAttention`` over the places of a convolutional network."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = conv(WIDTH, width, stride=2)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, channels, height, width = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        y, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + y.transpose(1, 2).reshape(n, channels, height, width)


class SqueezeExcite(nn.Module):
    def __init__(self, way: str, width: int = 24) -> None:
        super().__init__()
        self.way = way
        self.first = conv(WIDTH, width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        layers = (nn.Linear(width, 6), nn.Linear(6, width)) if way == "linear" else None
        self.down, self.up = layers or (nn.Conv2d(width, 6, 1), nn.Conv2d(6, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "linear":
            n, channels, _, _ = x.size()
            y = self.up(F.relu(self.down(self.pool(x).view(n, channels))))
            return x * torch.sigmoid(y).view(n, channels, 1, 1).expand_as(x)
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Cbam(nn.Module):
    """Channel attention from mean and maximum, then attention over places from two maps."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = conv(WIDTH, width)
        self.shared = nn.Sequential(nn.Conv2d(width, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, width, 1, bias=False))
        self.places = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        mean, most = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        x = x * torch.sigmoid(self.shared(mean) + self.shared(most))
        maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], dim=1)
        return x * torch.sigmoid(self.places(maps))


class Eca(nn.Module):
    """A one-dimensional convolution over the channels: neighbours in channel order weigh each other."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = conv(WIDTH, width)
        self.over = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.over(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * y.transpose(1, 2).unsqueeze(-1)


class SelectiveKernel(nn.Module):
    """SKNet: two kernel sizes, mixed by a softmax over the two, channel by channel."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.paths = nn.ModuleList([conv(WIDTH, width, 3), conv(WIDTH, width, 5)])
        self.down, self.up = conv(width, 8, 1), nn.Conv2d(8, 2 * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([path(x) for path in self.paths], dim=1)
        y = self.up(self.down(stacked.sum(1).mean((2, 3), keepdim=True)))
        n, channels, height, width = y.shape
        weights = torch.softmax(y.view(n, 2, channels // 2, height, width), dim=1)
        return torch.sum(stacked * weights, dim=1)


class SplitAttention(nn.Module):
    """ResNeSt with radix 2: one grouped convolution, its two halves mixed as in SKNet."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = conv(WIDTH, 2 * width, groups=2)
        self.down, self.up = conv(width, 8, 1), nn.Conv2d(8, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, channels, height, width = x.shape
        parts = x.reshape(n, 2, channels // 2, height, width)
        y = self.up(self.down(parts.sum(1).mean((2, 3), keepdim=True)))
        weights = F.softmax(y.view(n, 1, 2, -1).transpose(1, 2), dim=1).reshape(n, -1, 1, 1)
        return (parts * weights.reshape(n, 2, channels // 2, 1, 1)).sum(1).contiguous()


class Encoder(nn.Module):
    """A transformer's block: attention and MLP, each behind a LayerNorm and added to the stream."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, places, channels = x.shape
        parts = self.qkv(self.norm1(x)).reshape(n, places, 3, self.heads, channels // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, places, channels))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A vision transformer: patches, a class token, positions, two blocks."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.2)
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.2)
        self.blocks = nn.Sequential(Encoder(width), Encoder(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Windows(nn.Module):
    """Attention within windows of 4 x 4 places, shifted by two (Swin)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = conv(WIDTH, width)
        self.block = Encoder(width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.first(x).permute(0, 2, 3, 1), (-2, -2), (1, 2))
        n, height, width, channels = x.shape
        x = x.view(n, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        x = self.block(x.reshape(-1, 16, channels))
        x = x.view(n, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(x.reshape(n, height, width, channels), (2, 2), (1, 2)).permute(0, 3, 1, 2)


class PositionBias(nn.Module):
    """Attention over places with a bias for every pair of places in each head (Swin, LeViT), and one for each channel's
    place."""

    def __init__(self, heads: int = 4, width: int = 6) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.first, self.qkv = conv(WIDTH, 24, stride=2), nn.Conv2d(24, 3 * heads * width, 1)
        self.bias = nn.Parameter(torch.randn(heads, 64, 64) * 0.2)
        self.places = nn.Parameter(torch.randn(1, 24, 8, 8) * 0.2)
        self.out = nn.Conv2d(heads * width, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.places
        n, _, height, width = x.shape
        q, k, v = self.qkv(x).view(n, 3, self.heads, self.width, -1).transpose(3, 4).unbind(1)
        x = ((q @ k.transpose(2, 3)) * self.width**-0.5 + self.bias).softmax(-1) @ v
        return self.out(x.transpose(2, 3).reshape(n, self.heads * self.width, height, width))


KINDS = {
    "position_bias": lambda: Framed(PositionBias(), 24),
    "non_local": lambda: Framed(NonLocal(), 24),
    "attention_over_places": lambda: Framed(PlacesAttention("by hand"), 24),
    "attention_rearranged": lambda: Framed(PlacesAttention("rearranged"), 24),
    "attention_fused": lambda: Framed(PlacesAttention("fused"), 24),
    "multihead_attention": lambda: Framed(Multihead(), 24),
    "squeeze_excite": lambda: Framed(SqueezeExcite("convolution"), 24),
    "squeeze_excite_linear": lambda: Framed(SqueezeExcite("linear"), 24),
    "cbam": lambda: Framed(Cbam(), 24),
    "eca": lambda: Framed(Eca(), 24),
    "selective_kernel": lambda: Framed(SelectiveKernel(), 24),
    "split_attention": lambda: Framed(SplitAttention(), 24),
    "vision_transformer": Vit,
    "shifted_windows": lambda: Framed(Windows(), 24),
}
