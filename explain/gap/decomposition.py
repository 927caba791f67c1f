"""Hierarchical decomposition of a decision into the kernels that support it (Cheng et al., IJCV 131(5), 2023, section 3).

A decision F is explained by the maps of an earlier layer: ``A = G * F^l`` with ``G = dF/dF^l`` (eq. 3), a kernel's
contribution ``alpha_k`` is the mean of ``A_k`` over places (eq. 4), its strongest place where ``A_k`` is largest (eq. 5). The
strongest kernels at their strongest places are decisions themselves, explained by the layer before, and so on down.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...common.errors import InputError
from ...network.graph.execution import output_node, run_graph
from ...network.graph.feature_points import FeaturePoint, find_stages, named_points
from ...network.graph.reach import depends_on
from ...network.graph.segment import Segment
from ...network.graph.trace import reading_nodes, trace
from ...network.hooks import frozen, pick_logits
from ...network.images.images import Images
from ...network.images.pictures import in_words
from ...network.network import Network
from ..kernel_maps import fill_values, kernel_maps, point_maps
from .contributions import reduce_places
from .near_duplicates import Selection, strongest

VALUES_AT_ONCE = 2**23  # in the largest map of a pass: 32 MB


@dataclass(frozen=True)
class ClassDecision:
    """The logit of a class, one per image: ``classes`` is int64 ``[images]``."""

    classes: Tensor


@dataclass(frozen=True)
class KernelDecision:
    """A kernel at a place of its map, one per image: the layer or block that gives the map, and int64 ``[images]`` each."""

    layer: str
    kernels: Tensor
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class DecompositionSettings:
    """How a decision is taken apart.

    ``layers``: the layers or blocks of the chain, the ends of the network's stages if None. ``selection``: the kernels kept
    for each decision. ``most``: decisions kept for each image and layer, by importance; all if None. ``averages``: mean
    activation of each point's kernels, ``[C]`` by name; given, contributions are ``G * (F - E F)``, else the paper's
    ``G * F``. ``between``: give importance to all convolution and linear layers as well, ``layer_averages`` being theirs.
    """

    layers: tuple[str, ...] | None = None
    selection: Selection = field(default_factory=Selection)
    most: int | None = None
    averages: Mapping[str, Tensor] = field(default_factory=dict)
    layer_averages: Mapping[str, Tensor] = field(default_factory=dict)
    between: bool = False

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise ValueError(f"most must be at least 1 (got {self.most})")


@dataclass(frozen=True)
class Level:
    """The evidence found at one point: a row each, image by image.

    ``image``, ``parent`` (its row in the level above; at the first level the image), ``kernel``, ``row`` and ``column`` (the
    strongest place, eq. 5) are int64 ``[rows]``. ``value`` is F there; ``alpha`` the contribution to the decision above
    (eq. 4), in that decision's unit per place; ``share`` is ``alpha`` over the sum of ``|alpha|`` of all the layer's
    kernels; ``importance`` the product of the shares from the root down. ``maps`` are the activation maps A,
    ``[rows, H, W]``; ``merged`` names the kernels left out as near-duplicates of the row's.
    """

    point: FeaturePoint
    image: Tensor
    parent: Tensor
    kernel: Tensor
    row: Tensor
    column: Tensor
    value: Tensor
    alpha: Tensor
    share: Tensor
    importance: Tensor
    maps: Tensor
    merged: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.image)

    def kept(self, images: int) -> Tensor:
        """How often each kernel was kept, int64 ``[images, C]``."""
        counts = torch.zeros(images, self.point.channels, dtype=torch.int64)
        return counts.index_put_((self.image, self.kernel), torch.ones(len(self), dtype=torch.int64), accumulate=True)


@dataclass(frozen=True)
class Decomposition:
    """A batch of decisions taken apart, from the last layer of the chain to the first.

    ``decision`` is its value for each image, ``[images]``. ``importance`` maps every point to the importance of all its
    kernels, ``[images, C]``: ``I_k = sum_k' I_k' share_k|k'`` over the decisions kept above; ``layer_importance`` the same for
    convolution and linear layers, if asked for. ``saliency`` is the sum of the lowest decisions' gradients with respect to
    the image, weighted by their importance, ``[images, C, H, W]``.
    """

    decision: Tensor
    levels: tuple[Level, ...]
    importance: Mapping[str, Tensor]
    layer_importance: Mapping[str, Tensor]
    saliency: Tensor


def decompose(
    network: Network,
    inputs: Tensor,
    decision: ClassDecision | KernelDecision | None = None,
    settings: DecompositionSettings | None = None,
    *,
    device: str = "cpu",
) -> Decomposition:
    """Take a decision for each image apart, stage by stage.

    Args:
        network: any network that can be traced.
        inputs: normalised images, ``[n, C, H, W]``; the maps of all points are held at once, so give them batch by batch.
        decision: the class predicted for each image, if None.
        settings: see there.
        device: where to compute; results are on the CPU.

    Source: Cheng et al. 2023, eqs. 1 to 5 and section 3.2.

    Raises:
        InputError: the network cannot be traced or has no stages, a layer does not exist or gives no map, a kernel or a
            place is outside it, or nothing of the chain lies before the decision.
    """
    return Decomposer(network, settings, device=device)(inputs, decision)


class Decomposer:
    """:func:`decompose` for batch after batch: the network is traced once.

    Raises:
        InputError: the network cannot be traced or has no stages, a layer does not exist or gives no map.
    """

    def __init__(self, network: Network, settings: DecompositionSettings | None = None, *, device: str = "cpu") -> None:
        self.network, self.settings = network, settings or DecompositionSettings()
        self.example = network.example().to(device)
        self.view = trace(network.module, network.example()).to(device)
        self.device = device
        with frozen(self.view):
            if self.settings.layers is None:
                self.points = find_stages(self.view, self.example)
            else:
                self.points = named_points(self.view, self.example, self.settings.layers)

    def subtract_averages(self, images: Images, batch_size: int) -> None:
        """Explain from now on against mean activations over these images and their places: ``settings.averages``, measured."""
        points, layers = map(point_maps, self.points), kernel_maps(self.view).values() if self.settings.between else ()
        with frozen(self.view):
            of_points, of_layers = (
                fill_values(self.view, list(maps), images, "mean", batch_size, self.device) for maps in (points, layers)
            )
        self.settings = replace(self.settings, averages=of_points, layer_averages=of_layers)

    def __call__(self, inputs: Tensor, decision: ClassDecision | KernelDecision | None = None) -> Decomposition:
        """Take the decisions for normalised images ``[n, C, H, W]`` apart; see :func:`decompose`."""
        if tuple(inputs.shape[1:]) != self.network.input_shape:
            wanted = in_words(self.network.input_shape)
            raise InputError(f"Images of {wanted} are needed, not of {in_words(inputs.shape[1:])}. Resize them.")
        with frozen(self.view):
            return _Descent(self, inputs.to(self.device)).from_top(decision)


@dataclass(frozen=True)
class _Decisions:
    """Decisions to take apart: of each its image, its place in the target's output and its importance, ``[rows]``."""

    image: Tensor
    index: tuple[Tensor, ...]
    importance: Tensor

    def unique(self) -> tuple["_Decisions", Tensor]:
        """Each decision once with the importance of all its rows, and for each row the decision it is."""
        keys = torch.stack([self.image, *self.index], 1)
        distinct, inverse = torch.unique(keys, dim=0, return_inverse=True)
        importance = torch.zeros(len(distinct)).to(keys.device).index_add_(0, inverse, self.importance)
        return replace(self, image=distinct[:, 0], index=tuple(distinct[:, 1:].T), importance=importance), inverse

    def part(self, start: int, stop: int) -> "_Decisions":
        index = tuple(values[start:stop] for values in self.index)
        return replace(self, image=self.image[start:stop], index=index, importance=self.importance[start:stop])

    def of(self, output: object) -> Tensor:
        """The decisions' values in what the target gives for them, row by row."""
        values = pick_logits(output) if len(self.index) == 1 else output
        assert isinstance(values, Tensor)
        return values[(torch.arange(len(self.image), device=values.device), *self.index)]


class _Descent:
    def __init__(self, decomposer: Decomposer, inputs: Tensor) -> None:
        self.view, self.example, self.inputs = decomposer.view, decomposer.example, inputs
        self.points, self.settings = decomposer.points, decomposer.settings
        self.importance: dict[str, Tensor] = {}
        self.layer_importance: dict[str, Tensor] = {}
        self._layers = reading_nodes(self.view) if self.settings.between else {}
        for layer in self._layers:
            module = self.view.get_submodule(layer)
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            assert isinstance(width, int)
            self.layer_importance[layer] = inputs.new_zeros(len(inputs), width)

    def from_top(self, decision: ClassDecision | KernelDecision | None) -> Decomposition:
        target, image = output_node(self.view), next(n for n in self.view.graph.nodes if n.op == "placeholder")
        if isinstance(decision, KernelDecision):
            target = named_points(self.view, self.example, [decision.layer])[0].node
        chain = self._chain(target)
        sources = [*(point.node for point in chain), image]
        segments = [
            Segment(self.view, source, [end, *self._inside(source, end)])
            for source, end in zip(sources, [target, *sources], strict=False)
        ]
        wanted = {target, *sources, *(node for segment in segments for node in segment.reads)}
        with torch.no_grad():
            known = run_graph(self.view, self.inputs, wanted)
        decisions = self._first(decision, target, known[target])
        value = decisions.of(known[target])
        levels: list[Level] = []
        for segment, point in zip(segments, chain, strict=False):
            level = self._step(segment, point, decisions, known)
            levels.append(level)
            decisions = _Decisions(level.image, (level.kernel, level.row, level.column), level.importance)
        saliency = self._saliency(segments[-1], decisions, known)
        importance, of_layers = (
            {name: part.cpu() for name, part in parts.items()} for parts in (self.importance, self.layer_importance)
        )
        return Decomposition(value.cpu(), tuple(map(_on_cpu, levels)), importance, of_layers, saliency.cpu())

    def _chain(self, target: fx.Node) -> list[FeaturePoint]:
        """The points before the decision, the last first, each fed by the next.

        Raises:
            InputError: there are none, or one does not feed the one above.
        """
        order = {node: index for index, node in enumerate(self.view.graph.nodes)}
        chain = [point for point in reversed(self.points) if order[point.node] < order[target]]
        if not chain:
            names = ", ".join(point.name for point in self.points)
            raise InputError(f"None of {names} lies before the decision. Name earlier layers with --layers.")
        upper, above = "the decision", target
        for point in chain:
            if not depends_on(above, point.node):
                raise InputError(
                    f"{point.name} does not feed {upper}, so no chain leads down to it. Name other layers."
                )
            upper, above = point.name, point.node
        return chain

    def _inside(self, source: fx.Node, end: fx.Node) -> list[fx.Node]:
        """Where the layers from a point on, up to the one above, are read."""
        if not self._layers:
            return []
        own = {source, *Segment(self.view, source, [end]).nodes} - {end}
        return [node for nodes in self._layers.values() for node in nodes if node in own]

    def _first(self, decision: ClassDecision | KernelDecision | None, target: fx.Node, output: object) -> "_Decisions":
        images = torch.arange(len(self.inputs), device=self.inputs.device)
        if isinstance(decision, KernelDecision):
            assert isinstance(output, Tensor)
            named = {"kernel": decision.kernels, "row": decision.rows, "column": decision.columns}
            index = [_checked(f"{decision.layer}: {what}", values, size, len(images))
                     for (what, values), size in zip(named.items(), output.shape[1:], strict=True)]  # fmt: skip
        else:
            logits = pick_logits(output)
            classes = logits.argmax(1) if decision is None else decision.classes
            index = [_checked("class", classes, logits.shape[1], len(images))]
        return _Decisions(images, tuple(part.to(images) for part in index), torch.ones(len(images)).to(images.device))

    def _step(
        self, segment: Segment, point: FeaturePoint, decisions: "_Decisions", known: Mapping[fx.Node, object]
    ) -> Level:
        """The evidence for decisions of the layer above in the maps of a point."""
        total = self.importance[point.name] = self.inputs.new_zeros(len(self.inputs), point.channels)
        if not len(decisions.image):
            none, nothing = decisions.image, decisions.importance
            maps = self.inputs.new_zeros(0, point.height, point.width)
            return Level(point, none, none, none, none, none, nothing, nothing, nothing, nothing, maps, ())
        distinct, inverse = decisions.unique()
        columns: list[list[Tensor]] = []
        merged: list[list[tuple[int, ...]]] = []
        for part in self._parts(segment, distinct):
            values, gradient = self._backward(segment, part, known)
            maps = gradient * (values - _baseline(self.settings.averages, point.name, values).view(1, -1, 1, 1))
            alpha = maps.mean((2, 3))
            share = _share(alpha)
            _credit(total, part, share)
            kernel, duplicates = strongest(alpha, maps, self.settings.selection)
            merged += duplicates
            chosen = kernel.clamp(min=0)
            own = maps.gather(1, chosen[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
            place = own.flatten(2).argmax(2)
            there = values.flatten(2).gather(1, chosen[:, :, None].expand(-1, -1, point.height * point.width))
            value = there.gather(2, place.unsqueeze(2)).squeeze(2)
            row, column = place // point.width, place % point.width
            columns.append([kernel, row, column, value, alpha.gather(1, chosen), share.gather(1, chosen), own])
        kernel, row, column, value, alpha, share, own = (torch.cat(part) for part in zip(*columns, strict=True))
        parent, rank = (kernel[inverse] >= 0).nonzero(as_tuple=True)
        found = inverse[parent]
        importance = decisions.importance[parent] * share[found, rank]
        image = decisions.image[parent]
        if self.settings.most is not None:
            stay = _most_important(image, importance, self.settings.most)
            parent, rank, found, importance, image = (part[stay] for part in (parent, rank, found, importance, image))
        at = (found, rank)
        names = tuple(merged[index][place] for index, place in zip(found.tolist(), rank.tolist(), strict=True))
        return Level(
            point,
            image,
            parent,
            kernel[at],
            row[at],
            column[at],
            value[at],
            alpha[at],
            share[at],
            importance,
            own[at],
            names,
        )

    def _saliency(self, segment: Segment, decisions: "_Decisions", known: Mapping[fx.Node, object]) -> Tensor:
        distinct, _ = decisions.unique()
        total = torch.zeros_like(self.inputs)
        for part in self._parts(segment, distinct):
            _, gradient = self._backward(segment, part, known)
            total.index_add_(0, part.image, gradient * part.importance.view(-1, 1, 1, 1))
        return total

    def _parts(self, segment: Segment, decisions: "_Decisions") -> list["_Decisions"]:
        size = max(1, VALUES_AT_ONCE // self._largest(segment))
        return [decisions.part(start, start + size) for start in range(0, len(decisions.image), size)]

    def _largest(self, segment: Segment) -> int:
        """The values of the segment's largest map for one image."""
        nodes = [segment.source, *segment.nodes]
        with torch.no_grad():
            found = run_graph(self.view, self.example[:1], nodes)
        return max(value.numel() for value in found.values() if isinstance(value, Tensor))

    def _backward(self, segment: Segment, part: "_Decisions", known: Mapping[fx.Node, object]) -> tuple[Tensor, Tensor]:
        """The source's values and the decisions' gradients with respect to them; layers between are credited."""
        stored = known[segment.source]
        assert isinstance(stored, Tensor)
        with torch.enable_grad():
            values = stored.index_select(0, part.image).requires_grad_()
            output, *inner = segment.run(values, self.inputs, known, part.image)
            gradient, *others = torch.autograd.grad(
                part.of(output).sum(), [values, *inner], allow_unused=True, materialize_grads=True
            )
        reached = dict(zip(segment.wanted[1:], zip(inner, others, strict=True), strict=True))
        for layer, nodes in self._layers.items():
            calls = [reached[node] for node in nodes if node in reached]
            if calls:
                linear = isinstance(self.view.get_submodule(layer), nn.Linear)
                pairs = [(activation.detach(), slope) for activation, slope in calls]
                alpha, slope, _ = reduce_places(pairs, linear)
                average = _baseline(self.settings.layer_averages, layer, alpha)
                _credit(self.layer_importance[layer], part, _share(alpha - slope * average))
        return values.detach(), gradient


def _baseline(averages: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """What a layer's kernels are compared with, ``[C]``: their mean activations, or zero."""
    return averages[name].to(like) if name in averages else like.new_zeros(like.shape[1])


def _credit(total: Tensor, part: _Decisions, share: Tensor) -> None:
    """Add what decisions pass on to a layer's kernels."""
    total.index_add_(0, part.image, part.importance.unsqueeze(1) * share)


def _share(alpha: Tensor) -> Tensor:
    """Contributions ``[rows, C]`` over the sum of their sizes; zero where all are."""
    return alpha / alpha.abs().sum(1, keepdim=True).clamp(min=torch.finfo(alpha.dtype).tiny)


def _most_important(image: Tensor, importance: Tensor, most: int) -> Tensor:
    """Whether a row is among the most important ones of its image, bool ``[rows]``."""
    order = importance.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    ordered = image[order]
    start = torch.searchsorted(ordered, ordered)
    stay = torch.zeros_like(image, dtype=torch.bool)
    stay[order] = torch.arange(len(image), device=image.device) - start < most
    return stay


def _checked(what: str, values: Tensor, size: int, images: int) -> Tensor:
    if values.shape != (images,):
        raise InputError(f"{what}: one number for each of the {images} images was expected, not {tuple(values.shape)}.")
    if images and not 0 <= int(values.min()) <= int(values.max()) < size:
        raise InputError(f"{what} {int(values.min())} to {int(values.max())} was asked for; there are 0 to {size - 1}.")
    return values


def _on_cpu(level: Level) -> Level:
    moved: dict[str, Any] = {name: value.cpu() for name, value in vars(level).items() if isinstance(value, Tensor)}
    return replace(level, **moved)
