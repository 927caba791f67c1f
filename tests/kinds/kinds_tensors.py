"""Buffers and parameters for each channel, norms by hand, and sizes written out as numbers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinds_frame import CLASSES, LAST, WIDTH, Framed, conv


class PerChannel(nn.Module):
    """A tensor with one entry for each channel, used in a product or a sum."""

    def __init__(self, tensor: Tensor, way: str, learnt: bool = False) -> None:
        super().__init__()
        self.way = way
        self.first = conv(WIDTH, 24)
        if learnt:
            self.tensor = nn.Parameter(tensor)
        else:
            self.register_buffer("tensor", tensor)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "product":
            return x * self.tensor
        if self.way == "viewed":
            return x * self.tensor.view(1, -1, 1, 1)
        if self.way == "layer scale":
            return x + self.tensor[:, None, None] * torch.tanh(x)
        return x + self.tensor


class FrozenNorm(nn.Module):
    """torchvision's and detectron2's ``FrozenBatchNorm2d``, written as users copy it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(width) + 0.5)
        self.register_buffer("bias", torch.randn(width) * 0.2)
        self.register_buffer("running_mean", torch.randn(width) * 0.2)
        self.register_buffer("running_var", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        mean, variance = self.running_mean.reshape(1, -1, 1, 1), self.running_var.reshape(1, -1, 1, 1)
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Blur(nn.Module):
    """A fixed kernel for each channel, with the number of groups written out (anti-aliased pooling)."""

    def __init__(self, groups: str) -> None:
        super().__init__()
        self.groups = groups
        self.first = conv(WIDTH, 24)
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (kernel[:, None] * kernel / 16)[None, None].repeat(24, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.first(x), (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.kernel, stride=2, groups=24 if self.groups == "number" else x.shape[1])


class ExpandedBlur(Blur):
    """One kernel, expanded to the channels as it runs."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return F.conv2d(x, self.kernel[:1].expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])


class FlatNumbers(nn.Module):
    """``view`` to features with the sizes written out."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.features = nn.Sequential(conv(3, WIDTH, stride=2), nn.MaxPool2d(2), conv(WIDTH, 12, stride=2))
        self.hidden, self.head = nn.Linear(12 * 4 * 4, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.way == "first":
            x = x.view(-1, 12 * 4 * 4)
        elif self.way == "reshape":
            x = x.reshape(x.shape[0], 192)
        else:
            x = x.view(x.size(0), -1)
        return self.head(F.relu(self.hidden(x)))


class ViewNumbers(nn.Module):
    """From a vector to maps and back, and between one and two dimensions of places, sizes written out."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = conv(WIDTH, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "maps":
            return x.view(x.shape[0], 32 * 16 * 16).view(x.shape[0], 32, 16, 16)
        return torch.softmax(x.view(-1, 32, 256), 2).reshape(-1, 32, 16, 16) * 100


class GroupNormByHand(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.first = nn.Conv2d(WIDTH, 24, 3, padding=1)
        self.weight, self.bias = nn.Parameter(torch.rand(24) + 0.5), nn.Parameter(torch.randn(24) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, channels, height, width = x.shape
        x = x.view(n, self.groups, -1)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x.view(n, channels, height, width) * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over channels: through a permutation, functional, or by hand (ConvNeXt)."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Conv2d(WIDTH, 24, 3, padding=1)
        self.norm = nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "permuted":
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.way == "functional":
            shape = self.norm.normalized_shape
            x = F.layer_norm(x.permute(0, 2, 3, 1), shape, self.norm.weight, self.norm.bias, 1e-6)
            return x.permute(0, 3, 1, 2)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.norm.weight[:, None, None] * x + self.norm.bias[:, None, None]


class ResponseNorm(nn.Module):
    """ConvNeXtV2's global response normalisation, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(WIDTH, 24)
        self.gamma = nn.Parameter(torch.randn(24) * 0.2)
        self.beta = nn.Parameter(torch.randn(24) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(0, 2, 3, 1)
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        x = x + self.gamma * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta
        return x.permute(0, 3, 1, 2)


class OwnImageNorm(nn.Module):
    """The network normalises its images itself, with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.25, 0.2, 0.3]).view(1, 3, 1, 1))
        self.stem, self.tail = conv(3, WIDTH, stride=2), conv(WIDTH, LAST)
        self.head = nn.Linear(LAST, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.stem((x - self.mean) / self.std)).mean((2, 3)))


def _mask() -> Tensor:
    return (torch.rand(1, 24, 1, 1) > 0.2).float() * torch.rand(1, 24, 1, 1)


KINDS = {
    "mask_buffer": lambda: Framed(PerChannel(_mask(), "product"), 24),
    "mask_parameter": lambda: Framed(PerChannel(_mask(), "product", learnt=True), 24),
    "vector_viewed": lambda: Framed(PerChannel(torch.rand(24) + 0.5, "viewed"), 24),
    "layer_scale": lambda: Framed(PerChannel(torch.rand(24), "layer scale", learnt=True), 24),
    "positional_embedding": lambda: Framed(PerChannel(torch.randn(1, 24, 16, 16), "sum", learnt=True), 24),
    "positional_buffer": lambda: Framed(PerChannel(torch.randn(24, 16, 16), "sum"), 24),
    "one_place_for_all_channels": lambda: Framed(PerChannel(torch.randn(1, 1, 16, 16), "sum"), 24),
    "frozen_batch_norm": lambda: Framed(nn.Sequential(nn.Conv2d(WIDTH, 24, 3, 1, 1), FrozenNorm(24), nn.ReLU()), 24),
    "blur_groups_number": lambda: Framed(Blur("number"), 24),
    "blur_groups_shape": lambda: Framed(Blur("shape"), 24),
    "blur_expanded": lambda: Framed(ExpandedBlur("shape"), 24),
    "flat_numbers": lambda: FlatNumbers("first"),
    "flat_number_reshape": lambda: FlatNumbers("reshape"),
    "flat_by_size": lambda: FlatNumbers("size"),
    "maps_from_numbers": lambda: Framed(ViewNumbers("maps"), 32),
    "places_from_numbers": lambda: Framed(ViewNumbers("places"), 32),
    "group_norm": lambda: Framed(nn.Sequential(nn.Conv2d(WIDTH, 24, 3, 1, 1), nn.GroupNorm(4, 24), nn.ReLU()), 24),
    "group_norm_by_hand": lambda: Framed(GroupNormByHand(4), 24),
    "instance_norm_by_hand": lambda: Framed(GroupNormByHand(24), 24),
    "layer_norm_permuted": lambda: Framed(ChannelsFirstNorm("permuted"), 24),
    "layer_norm_functional": lambda: Framed(ChannelsFirstNorm("functional"), 24),
    "layer_norm_by_hand": lambda: Framed(ChannelsFirstNorm("by hand"), 24),
    "response_norm": lambda: Framed(ResponseNorm(), 24),
    "slopes_for_each_channel": lambda: Framed(nn.Sequential(nn.Conv2d(WIDTH, 24, 3, 1, 1), nn.PReLU(24)), 24),
    "own_image_norm": OwnImageNorm,
}
