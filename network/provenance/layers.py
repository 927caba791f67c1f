"""Labels through layers, which produce, read or carry channels."""

from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxPoolNd

from ..graph.leaf_modules import Add, ChannelMean, Multiply, Normalize, SelectChannels, ZeroPadChannels
from ..graph.stand_ins import Constant, Subsample
from ..graph.trace import ACTIVATIONS
from .moves import varying
from .parts import Part, no_labels, placed
from .places import Places

_PLACES = (_MaxPoolNd, _AvgPoolNd, _LPPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, nn.Upsample, Subsample)
_PLAIN = (*(kind for kind in ACTIVATIONS if kind is not nn.PReLU), nn.Identity, Add, Multiply)
_ELEMENTWISE_MODULES = frozenset(
    [
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
        "AlphaDropout",
        "FeatureAlphaDropout",
        "Hardshrink",
        "Softshrink",
        "Tanhshrink",
        "Softsign",
        "LogSigmoid",
        "Threshold",
        "CELU",
        "SELU",
        "RReLU",
        "Hardtanh",
        "DropPath",
        "StochasticDepth",
    ]
)


class Layers(Places):
    """Rules for modules."""

    def _through_module(self, node: fx.Node, module: nn.Module, value: Any) -> Any:
        name = str(node.target)
        source: Any = next(iter(node.all_input_nodes), None)
        labels = self.of.get(source)
        if not isinstance(labels, Tensor):
            return None
        if isinstance(module, _ConvNd):
            return self._through_convolution(name, module, labels, value)
        if isinstance(module, nn.Linear):
            last = labels.dim() - 1
            if varying(labels) and last not in varying(labels):  # over places: the channels pass by
                return labels
            self._part(name, "in", self._along(labels, self.values[source], last))
            return placed(self._out(name, module.out_features), value, value.dim() - 1)
        if isinstance(module, Constant):
            vector = self._out(f"{name}.bias", len(module.bias), side="out")
            return placed(vector, value, 1)
        if isinstance(module, ZeroPadChannels):
            if varying(labels) and 1 not in varying(labels):  # places of a map whose channels come last
                return labels
            self._part(name, "in", self._along(labels, self.values[source], 1))
            return placed(self._out(name, value.shape[1]), value, 1)
        if isinstance(module, SelectChannels):
            dim = module.dim % value.dim()
            vector = self._along(labels, self.values[source], dim)
            self._part(name, "in", vector)
            picked = vector[module.source]
            return placed(picked, value, dim)
        if not bool(labels.any()):
            return None
        if isinstance(module, _BatchNorm | _InstanceNorm):
            vector = self._along(labels, self.values[source], 1)
            if module.affine or getattr(module, "running_mean", None) is not None:
                self._part(name, "out", vector)
            return placed(vector, value, 1)
        if isinstance(module, nn.GroupNorm):
            return self._through_group_norm(name, module, labels, value)
        if isinstance(module, nn.LayerNorm):
            return self._through_layer_norm(name, module, labels, value)
        if isinstance(module, Normalize | ChannelMean):
            dims = [dim % labels.dim() for dim in module.dims]
            if (dim := module.dim % labels.dim()) in varying(labels):
                self._part(name, "in", self._along(labels, self.values[source], dim))
            return (
                labels
                if isinstance(module, Normalize)
                else self._reduced(node, no_labels(self.values[source]), value, dims)
            )
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            vector = self._along(labels, self.values[source], 1)
            self._part(name, "out", vector)
            return placed(vector, value, 1)
        if isinstance(module, (*_PLAIN, nn.PReLU)) or type(module).__name__ in _ELEMENTWISE_MODULES:
            return self._elementwise(node, value)
        if isinstance(module, _PLACES):
            return self._along_places(labels, value)
        if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmax2d):
            dim = getattr(module, "dim", 1)
            return self._reduced(node, labels, value, [1 if dim is None else int(dim) % value.dim()])
        return None

    def _through_convolution(self, name: str, module: _ConvNd, labels: Tensor, value: Tensor) -> Tensor:
        inputs, groups = module.in_channels, module.groups
        if varying(labels) and 1 not in varying(labels):
            self.ties.lock(labels, f"{name} ({type(module).__name__}) mixes its channels as places.")
            labels = no_labels(labels)
        vector = self._along(labels, None, 1, inputs)
        if groups != inputs or groups == 1:
            self._part(name, "in", vector)
        if groups == 1:
            return placed(self._out(name, module.out_channels), value, 1)
        if groups == inputs:
            outputs = vector.repeat_interleave(module.out_channels // inputs)
            if isinstance(module, _ConvTransposeNd) and module.out_channels != inputs:
                self.ties.lock(vector, f"{name} is a transposed depthwise convolution with several outputs per input.")
            self._part(name, "out", outputs)
            return placed(outputs, value, 1)
        if bool((vector == 0).any()):
            self.ties.lock(vector, f"{name} ties only a part of its channels to others.")
        self.ties.collapse(vector.reshape(groups, -1), [0])
        outputs = self._out(name, module.out_channels)
        self.ties.collapse(outputs.reshape(groups, -1), [0])
        return placed(outputs, value, 1)

    def _through_group_norm(self, name: str, module: nn.GroupNorm, labels: Tensor, value: Tensor) -> Tensor:
        vector = self._along(labels, None, 1, module.num_channels)
        if module.num_groups > 1:
            if bool((vector == 0).any()):
                self.ties.lock(vector, f"{name} ties only a part of its channels to others.")
            self.ties.collapse(vector.reshape(module.num_groups, -1), [0])
        if module.affine:
            self._part(name, "out", vector)
        return placed(vector, value, 1)

    def _through_layer_norm(self, name: str, module: nn.LayerNorm, labels: Tensor, value: Tensor) -> Tensor:
        rank, own = value.dim(), len(module.normalized_shape)
        inside = [dim for dim in varying(labels) if dim >= rank - own]
        if not inside:
            return labels
        if own > 1:
            self.ties.lock(labels, f"{name} normalises over channels and positions.")
            return labels
        vector = self._along(labels, value, rank - 1)
        self._part(name, "out", vector)
        return placed(vector, value, rank - 1)

    def _along(self, labels: Tensor, value: Any, dim: int, width: int | None = None) -> Tensor:
        """A label for every channel along ``dim``, int64 ``[channels]``; what meets at one channel is tied."""
        kept = self.ties.collapse(labels, [other for other in range(labels.dim()) if other != dim])
        size = width if width is not None else int(value.shape[dim])
        return kept.flatten().expand(size).clone()

    def _part(self, layer: str, side: Literal["out", "in"], labels: Tensor) -> None:
        known = self.sides.get((layer, side))
        if known is not None:  # called again
            odd = (known.labels == 0) != (labels == 0)
            self.ties.lock(torch.where(odd, labels + known.labels, 0), f"{layer} is called on different channels.")
            labels = self.ties.tie(known.labels, labels)
        self.sides[layer, side] = Part(layer, side, labels)

    def _out(self, layer: str, width: int, side: Literal["out", "in"] = "out") -> Tensor:
        known = self.sides.get((layer, side))
        labels = known.labels if known is not None else self.ties.fresh(width)
        self.sides[layer, side] = Part(layer, side, labels)
        return labels
