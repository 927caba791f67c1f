"""Heads, several outputs, and ``forward`` methods that decide, draw or call a layer twice."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinds_frame import CLASSES, LAST, WIDTH, Framed, conv


class Outputs(nn.Module):
    """A network that returns more than the class scores."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.tail = conv(3, WIDTH, stride=2), conv(WIDTH, LAST)
        self.head, self.other = nn.Linear(LAST, CLASSES), nn.Linear(LAST, 4)
        self.auxiliary = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> object:
        early = self.stem(x)
        features = self.tail(early).mean((2, 3))
        logits = self.head(features)
        if self.way == "two heads":
            return logits, self.other(features)
        if self.way == "other head first":
            return self.other(features), logits
        if self.way == "features":
            return logits, features
        if self.way == "features first":
            return features, logits
        if self.way == "named":
            return {"features": features, "logits": logits}
        auxiliary = self.auxiliary(early.mean((2, 3)))
        return (logits, auxiliary) if self.way == "auxiliary" or self.training else logits


class Cosine(nn.Module):
    """Cosine similarity with the classes' vectors."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.features = nn.Sequential(conv(3, WIDTH, stride=2), conv(WIDTH, LAST))
        if way == "layer":
            self.head = nn.Linear(LAST, CLASSES, bias=False)
        else:
            self.classes = nn.Parameter(torch.randn(CLASSES, LAST))
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.features(x).mean((2, 3)))
        vectors = self.head.weight if self.way == "layer" else self.classes
        if self.way == "plain matmul":
            return x @ vectors.t()
        return self.scale * F.linear(x, F.normalize(vectors))


class ConvolutionalHead(nn.Module):
    """The classes come from a 1 x 1 convolution, pooled afterwards (SqueezeNet, NIN)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, WIDTH, stride=2), conv(WIDTH, LAST))
        self.head = nn.Conv2d(LAST, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(F.adaptive_avg_pool2d(self.head(self.features(x)), 1), 1)


class AlwaysDrops(nn.Module):
    """Dropout that is on in evaluation too (Monte Carlo dropout)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, training=True)


class Decides(nn.Module):
    """``forward`` takes a branch by the values, the shape or the mode."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = conv(WIDTH, 24), conv(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "values":
            return self.second(x) if x.sum() > 0 else x
        if self.way == "number":
            return self.second(x) * max(float(x.abs().max()), 1e-3)
        if self.way == "shape":
            return self.second(x) if x.shape[-1] > 8 else x
        assert x.min() >= 0, "after a ReLU"
        return self.second(x)


class Twice(nn.Module):
    """One layer called twice, and two layers that share their weights."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.shared = conv(WIDTH, 24), conv(24, 24)
        self.twin = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        if way == "tied":
            self.twin.weight = self.shared[0].weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.first(x))
        return F.relu(self.twin(x)) if self.way == "tied" else self.shared(x)


class Resized(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.low = conv(WIDTH, 24), conv(24, 24, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        low = self.low(x)
        if self.way == "scale":
            return x + F.interpolate(low, scale_factor=2, mode="bilinear")
        if self.way == "size":
            return x + F.interpolate(low, size=x.shape[-2:], mode="nearest")
        return x + F.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=True)


class FurtherArguments(nn.Module):
    """Takes more than images, as packages' networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(WIDTH, 24), nn.Linear(24, CLASSES)
        self.stem = conv(3, WIDTH, stride=2)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *further: Tensor, scaled: bool = False, **options: float
    ) -> Tensor:
        return self.predict(x, *further, mask=mask, scaled=scaled, **options)

    def predict(self, x: Tensor, *further: Tensor, mask: Tensor | None, scaled: bool, factor: float = 2.0) -> Tensor:
        x = self.body(self.stem(x))
        for each in further:
            x = x + each
        if mask is not None:
            x = x * mask
        if scaled:
            x = x * factor
        return self.head(x.mean((2, 3)))


class Unused(nn.Module):
    """Layers that ``forward`` never calls, and a layer whose result nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.never, self.unread = conv(WIDTH, 24), conv(24, 24), conv(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.unread(x)
        return x


def _lazy() -> nn.Module:
    layers = [
        nn.LazyConv2d(WIDTH, 3, 2, 1),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.LazyConv2d(LAST, 3, padding=1),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(CLASSES))


LAZY = ("lazy_layers",)
"""Kinds whose tensors take their shapes from weights or a first image."""

KINDS = {
    "further_arguments": FurtherArguments,
    "two_heads": lambda: Outputs("two heads"),
    "other_head_first": lambda: Outputs("other head first"),
    "logits_and_features": lambda: Outputs("features"),
    "features_and_logits": lambda: Outputs("features first"),
    "named_outputs": lambda: Outputs("named"),
    "auxiliary_returned": lambda: Outputs("auxiliary"),
    "auxiliary_in_training": lambda: Outputs("dropped"),
    "cosine_classifier": lambda: Cosine("layer"),
    "cosine_parameter": lambda: Cosine("parameter"),
    "head_by_matmul": lambda: Cosine("plain matmul"),
    "convolutional_head": ConvolutionalHead,
    "dropout_always": lambda: Framed(AlwaysDrops(), WIDTH),
    "decides_on_values": lambda: Framed(Decides("values"), 24),
    "scales_by_a_value": lambda: Framed(Decides("number"), 24),
    "decides_on_shape": lambda: Framed(Decides("shape"), 24),
    "asserts_on_values": lambda: Framed(Decides("assert"), 24),
    "called_twice": lambda: Framed(Twice("called"), 24),
    "tied_weights": lambda: Framed(Twice("tied"), 24),
    "resized_by_scale": lambda: Framed(Resized("scale"), 24),
    "resized_to_size": lambda: Framed(Resized("size"), 24),
    "resized_aligned": lambda: Framed(Resized("aligned"), 24),
    "unused_layers": lambda: Framed(Unused(), 24),
    "lazy_layers": _lazy,
}
