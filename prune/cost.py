"""Exact MACs, parameters and bytes of a network after any cut, without building the smaller network."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.flop_counter import FlopCounterMode

from ..common.errors import SecateurError
from ..network.channels.cut import Cut
from ..network.channels.group import ChannelGroup, Side
from ..network.channels.zero_pad import followable
from ..network.hooks import frozen, pick_logits
from ..network.network import Network
from .latency_table import LatencyTable

ELEMENT_BYTES = 4
_WIDE = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
Removed = Mapping[tuple[str, Side], int]
"""From (layer, side) to the number of channels removed."""


@dataclass(frozen=True)
class Cost:
    """The cost of a network.

    Attributes:
        macs: multiply-accumulates of convolutions, linear layers and matrix products for one image.
        parameters: elements of all parameters, without running statistics.
        bytes: the size of parameters and running statistics, four bytes per element.
    """

    macs: int
    parameters: int
    bytes: int

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.macs - other.macs, self.parameters - other.parameters, self.bytes - other.bytes)

    def of(self, resource: str) -> int:
        """The cost in one resource: macs, params or size."""
        return {"macs": self.macs, "params": self.parameters, "size": self.bytes}[resource]

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class LayerShape:
    """What a layer's cost depends on.

    Attributes:
        outputs: output channels.
        inputs: input channels; None for norms and bare parameters.
        groups: groups of a convolution.
        kernel: weights of one kernel per input channel.
        places: output positions of one image, summed over calls (input positions for a transposed convolution).
        per_output: parameters per output channel besides the weights; all of them where ``inputs`` is None.
        statistics: running statistics per channel.
        shared: parameters that count with an earlier layer, which holds the same. Such layers are not cut.
    """

    outputs: int
    inputs: int | None
    groups: int
    kernel: int
    places: int
    per_output: int
    statistics: int = 0
    shared: int = 0

    def cost(self, outputs_removed: int, inputs_removed: int) -> Cost:
        outputs = self.outputs - outputs_removed
        if outputs == 0:
            return Cost(0, 0, 0)
        if self.inputs is None:
            parameters = outputs * self.per_output
            return Cost(0, parameters, ELEMENT_BYTES * (parameters + outputs * self.statistics))
        depthwise = self.groups == self.outputs == self.inputs and self.groups > 1
        reads = 1 if depthwise else (self.inputs - inputs_removed) // self.groups
        if reads == 0:  # a constant replaces the layer
            return Cost(0, outputs, ELEMENT_BYTES * outputs)
        weights = outputs * reads * self.kernel
        parameters = max(0, weights + outputs * self.per_output - self.shared)
        return Cost(self.places * weights, parameters, ELEMENT_BYTES * parameters)


@dataclass(frozen=True)
class CostModel:
    """The cost of a network as a function of its widths.

    Attributes:
        layers: the layers whose widths can change, by name.
        fixed: the cost outside these layers, counted whole after any cut.
        times: a measured latency table, needed for latency budgets.
    """

    layers: Mapping[str, LayerShape]
    fixed: Cost
    times: LatencyTable | None = None

    @property
    def whole(self) -> Cost:
        """The cost of the whole network."""
        return self.of({})

    def of(self, removed: Removed) -> Cost:
        """The cost after removing some channels of every layer."""
        macs, parameters, size = self.fixed.macs, self.fixed.parameters, self.fixed.bytes
        for name, shape in self.layers.items():
            cost = shape.cost(removed.get((name, "out"), 0), removed.get((name, "in"), 0))
            macs += cost.macs
            parameters += cost.parameters
            size += cost.bytes
        return Cost(macs, parameters, size)

    def of_cut(self, cut: Cut) -> Cost:
        """The cost after a cut."""
        return self.of(_counts(cut))

    def along(self, groups: Iterable[ChannelGroup]) -> "CostModel":
        """The same costs, with bare parameters along the dimension in which these groups cut them.

        A parameter's shape alone does not say which: a position bias ``[heads, N, N]`` loses heads, an embedding ``[N, C]``
        loses channels.
        """
        layers = dict(self.layers)
        for member in (member for group in groups for member in group.members):
            shape = layers.get(member.layer)
            if shape is not None and member.kind == "parameter" and shape.outputs != member.width:
                elements = shape.outputs * shape.per_output
                layers[member.layer] = replace(shape, outputs=member.width, per_output=elements // member.width)
        return replace(self, layers=layers)

    def as_run(self, smaller: "CostModel") -> "CostModel":
        """The same network with the places and the fixed MACs of a smaller one: a layer over places runs for each channel, and
        attention for each head.
        """
        layers = {
            name: replace(shape, places=smaller.layers[name].places) if name in smaller.layers else shape
            for name, shape in self.layers.items()
        }
        return replace(self, layers=layers, fixed=replace(self.fixed, macs=smaller.fixed.macs))

    def amount(self, resource: str, cut: Cut | None = None) -> float:
        """The cost in one resource, after a cut if one is given; for latency the milliseconds by the table."""
        if resource != "latency":
            return self.of(_counts(cut or {})).of(resource)
        removed = _counts(cut or {})
        layers = sum(
            self.layer_amount(resource, name, removed.get((name, "out"), 0), removed.get((name, "in"), 0))
            for name in self._table.layers
        )
        return self._table.offset_ms + layers

    def layer_amount(self, resource: str, layer: str, outputs_removed: int, inputs_removed: int) -> float:
        """The cost of one layer in one resource, after removing some of its channels."""
        shape = self.layers[layer]
        if resource != "latency":
            return shape.cost(outputs_removed, inputs_removed).of(resource)
        return self._table.layer_ms(layer, shape.outputs - outputs_removed, (shape.inputs or 0) - inputs_removed)

    @property
    def _table(self) -> LatencyTable:
        if self.times is None:
            raise SecateurError(
                "A latency budget needs a latency table, and none was given. This is a defect; please report it."
            )
        return self.times


def _counts(cut: Cut) -> dict[tuple[str, Side], int]:
    removed: dict[tuple[str, Side], int] = {}
    for name, part in cut.items():
        removed[name, "out"] = len(part.out_removed)
        removed[name, "in"] = len(part.in_removed)
    return removed


def measure_cost(network: Network) -> CostModel:
    """Measure the shape of every layer with a forward pass of one image.

    MACs outside layers (the matrix products of attention) are part of ``fixed``: half the FLOPs that torch's
    ``FlopCounterMode`` counts, minus the layers' MACs. A cut of heads lowers them too, and a cut of channels the MACs of layers
    over places (MLP-Mixer), so the cost after such cuts is at most what the model says.

    Examples:
        >>> import secateur
        >>> costs = secateur.measure_cost(secateur.load_model("digits"))
        >>> costs.whole.macs
        3295872
        >>> costs.of({("block1.conv1", "out"): 8, ("block1.conv2", "in"): 8}).macs  # without 8 of its 32 kernels
        3000960
    """
    module = followable(network.module, network.example(1))
    shapes = _layer_shapes(module, network.example(1))
    with torch.no_grad(), frozen(module), _attention_in_steps(), FlopCounterMode(display=False) as counter:
        pick_logits(module(network.example(1)))
    in_layers = sum(shape.cost(0, 0).macs for shape in shapes.values())
    parameters = sum(parameter.numel() for parameter in module.parameters())
    counted = sum(shape.cost(0, 0).parameters for shape in shapes.values())
    rest = parameters - counted
    fixed = Cost(max(0, counter.get_total_flops() // 2 - in_layers), rest, ELEMENT_BYTES * rest)
    return CostModel(shapes, fixed)


@contextmanager
def _attention_in_steps() -> Iterator[None]:
    """Attention as separate matrix products: the counter does not see into torch's fused operation."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _layer_shapes(module: nn.Module, example: Tensor) -> dict[str, LayerShape]:
    places: dict[str, int] = {}
    handles = []
    for name, child in module.named_modules():
        if isinstance(child, _ConvNd | nn.Linear):

            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                seen = inputs[0] if isinstance(layer, _ConvTransposeNd) else output
                channels = seen.shape[-1] if isinstance(layer, nn.Linear) else seen.shape[1]
                places[name] = places.get(name, 0) + seen[0].numel() // channels

            handles.append(child.register_forward_hook(hook))
    try:
        with torch.no_grad(), frozen(module):
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    shapes: dict[str, LayerShape] = {}
    covered: set[int] = set()
    for name, child in module.named_modules():
        own = [parameter for parameter in child.parameters(recurse=False) if id(parameter) not in covered]
        shared = sum(parameter.numel() for parameter in child.parameters(recurse=False) if id(parameter) in covered)
        if isinstance(child, _ConvNd):
            kernel = child.weight[0, 0].numel()
            bias = int(child.bias is not None)
            shapes[name] = LayerShape(
                child.out_channels, child.in_channels, child.groups, kernel, places.get(name, 0), bias, shared=shared
            )
        elif isinstance(child, nn.Linear):
            bias = int(child.bias is not None)
            shapes[name] = LayerShape(
                child.out_features, child.in_features, 1, 1, places.get(name, 0), bias, shared=shared
            )
        elif (
            own
            and isinstance(child, _WIDE)
            and all(parameter.dim() == 1 and len(parameter) == len(own[0]) for parameter in own)
        ):
            tracked = getattr(child, "running_mean", None) is not None
            shapes[name] = LayerShape(len(own[0]), None, 1, 0, 0, len(own), 2 if tracked else 0)
        else:
            for leaf, parameter in child.named_parameters(recurse=False):
                wide = [size for size in parameter.shape if size > 1]
                if wide:
                    full = f"{name}.{leaf}" if name else leaf
                    shapes[full] = LayerShape(wide[-1], None, 1, 0, 0, parameter.numel() // wide[-1])
        covered.update(id(parameter) for parameter in own)
    return shapes
