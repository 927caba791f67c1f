"""One descent of a decomposition: from a batch of decisions through the points of the chain down to the pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, fx, nn

from ...common.errors import InputError
from ...network.graph.execution import output_node, run_graph
from ...network.graph.feature_points import FeaturePoint, named_points
from ...network.graph.reach import depends_on
from ...network.graph.segment import Segment
from ...network.graph.trace import reading_nodes
from .contributions import reduce_places
from .decisions import ClassDecision, DecisionRows, KernelDecision, first_decisions
from .levels import Decomposition, DecompositionSettings, Level
from .near_duplicates import strongest

VALUES_AT_ONCE = 2**23
"""Values in the largest map of one pass: 32 MB."""

Known = Mapping[fx.Node, object]
"""What nodes output for the images, from one forward pass of the whole network."""


@dataclass(frozen=True)
class Chain:
    """The points that decisions are explained by, the last layer first, each depending on the next.

    ``segments`` are the parts of the network between neighbours: from each point to the one above it (first: to ``target``,
    the decision's node), and last from the image to the lowest point.
    """

    target: fx.Node
    points: tuple[FeaturePoint, ...]
    segments: tuple[Segment, ...]

    @property
    def nodes(self) -> set[fx.Node]:
        """All nodes whose outputs a descent starts from."""
        reads = (node for segment in self.segments for node in (segment.source, *segment.reads))
        return {self.target, *reads}


@dataclass(frozen=True)
class _Strongest:
    """The strongest kernels of each distinct decision, ``[decisions, top]`` (kernel -1: there are no more); ``maps`` are their
    activation maps, ``[decisions, top, H, W]``, ``merged`` their near-duplicates."""

    kernel: Tensor
    row: Tensor
    column: Tensor
    value: Tensor
    alpha: Tensor
    share: Tensor
    maps: Tensor
    merged: list[list[tuple[int, ...]]]

    @classmethod
    def joined(cls, parts: Sequence["_Strongest"]) -> "_Strongest":
        """Those of all decisions, from those of some at a time."""
        merged = [lists for part in parts for lists in part.merged]
        tensors = (torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)[:-1])
        kernel, row, column, value, alpha, share, maps = tensors
        return cls(kernel, row, column, value, alpha, share, maps, merged)


class Descent:
    """Decomposes the decisions of one batch.

    Args:
        view: a traced network.
        example: one image of the network's input shape, on its device.
        points: where evidence is looked for, in network order.
        settings: see there.
        inputs: normalised images, ``[n, C, H, W]``, on the network's device.
    """

    def __init__(
        self,
        view: fx.GraphModule,
        example: Tensor,
        points: Sequence[FeaturePoint],
        settings: DecompositionSettings,
        inputs: Tensor,
    ) -> None:
        self.view, self.example, self.points = view, example, points
        self.settings, self.inputs = settings, inputs
        self.importance: dict[str, Tensor] = {}
        self.layer_importance: dict[str, Tensor] = {}
        self._layers = reading_nodes(self.view) if settings.between else {}
        for layer in self._layers:
            module = self.view.get_submodule(layer)
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            assert isinstance(width, int)
            self.layer_importance[layer] = inputs.new_zeros(len(inputs), width)

    def run(self, decision: ClassDecision | KernelDecision | None) -> Decomposition:
        """Explain a decision for each image, level by level.

        Raises:
            InputError: no point lies before the decision, two points are not connected, or the decision does not exist.
        """
        chain = self.chain(decision)
        with torch.no_grad():
            known = run_graph(self.view, self.inputs, chain.nodes)
        images = torch.arange(len(self.inputs), device=self.inputs.device)
        decisions = first_decisions(decision, known[chain.target], images)
        value = decisions.values(known[chain.target])
        levels: list[Level] = []
        for segment, point in zip(chain.segments, chain.points, strict=False):
            level = self.explain(segment, point, decisions, known)
            levels.append(level)
            decisions = DecisionRows(level.image, (level.kernel, level.row, level.column), level.importance)
        saliency = self.saliency(chain.segments[-1], decisions, known)
        importance, of_layers = (
            {name: part.cpu() for name, part in parts.items()} for parts in (self.importance, self.layer_importance)
        )
        return Decomposition(value.cpu(), tuple(level.cpu() for level in levels), importance, of_layers, saliency.cpu())

    def chain(self, decision: ClassDecision | KernelDecision | None) -> Chain:
        """The points before the decision and the parts of the network between them.

        Raises:
            InputError: there are no points, or one does not feed the one above.
        """
        target, image = output_node(self.view), next(n for n in self.view.graph.nodes if n.op == "placeholder")
        if isinstance(decision, KernelDecision):
            target = named_points(self.view, self.example, [decision.layer])[0].node
        order = {node: index for index, node in enumerate(self.view.graph.nodes)}
        points = tuple(point for point in reversed(self.points) if order[point.node] < order[target])
        if not points:
            names = ", ".join(point.name for point in self.points)
            raise InputError(f"None of {names} lies before the decision. Name earlier layers with --layers.")
        upper, above = "the decision", target
        for point in points:
            if not depends_on(above, point.node):
                raise InputError(
                    f"{point.name} does not feed {upper}, so the chain of layers is broken there. Name other layers."
                )
            upper, above = point.name, point.node
        sources = [*(point.node for point in points), image]
        ends = [target, *sources[:-1]]
        segments = tuple(
            Segment(self.view, source, [end, *self._layers_between(source, end)])
            for source, end in zip(sources, ends, strict=True)
        )
        return Chain(target, points, segments)

    def _layers_between(self, source: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The nodes where layers from a point on, up to the one above, are read; none unless these layers were asked for."""
        if not self._layers:
            return []
        own = {source, *Segment(self.view, source, [end]).nodes} - {end}
        return [node for nodes in self._layers.values() for node in nodes if node in own]

    def explain(self, segment: Segment, point: FeaturePoint, decisions: DecisionRows, known: Known) -> Level:
        """The evidence in a point's maps for decisions of the layer above (eqs. 1 to 5); adds to ``importance``."""
        self.importance[point.name] = self.inputs.new_zeros(len(self.inputs), point.channels)
        if not len(decisions.image):
            return self._nothing(point, decisions)
        distinct, inverse = decisions.unique()
        parts = [self._strongest(segment, point, part, known) for part in self._parts(segment, distinct)]
        return self._level(point, decisions, inverse, _Strongest.joined(parts))

    def _nothing(self, point: FeaturePoint, decisions: DecisionRows) -> Level:
        """The level for no decisions at all."""
        none, nothing = decisions.image, decisions.importance
        maps = self.inputs.new_zeros(0, point.height, point.width)
        return Level(point, none, none, none, none, none, nothing, nothing, nothing, nothing, maps, ())

    def _strongest(self, segment: Segment, point: FeaturePoint, part: DecisionRows, known: Known) -> _Strongest:
        """The kernels that contribute most to each decision; their importance goes to the point's kernels."""
        values, gradient = self.gradients(segment, part, known)
        maps = activation_maps(values, gradient, _baseline(self.settings.averages, point.name, values))
        alpha = mean_over_places(maps)
        share = shares(alpha)
        _pass_on(self.importance[point.name], part, share)
        kernel, merged = strongest(alpha, maps, self.settings.selection)
        chosen = kernel.clamp(min=0)
        own = maps.gather(1, chosen[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
        row, column = strongest_place(own)
        there = values.flatten(2).gather(1, chosen[:, :, None].expand(-1, -1, point.height * point.width))
        value = there.gather(2, (row * point.width + column).unsqueeze(2)).squeeze(2)
        return _Strongest(kernel, row, column, value, alpha.gather(1, chosen), share.gather(1, chosen), own, merged)

    def _level(self, point: FeaturePoint, decisions: DecisionRows, inverse: Tensor, found: _Strongest) -> Level:
        """A row for each decision and each of its kernels, with the importance that the decision gives it."""
        parent, rank = (found.kernel[inverse] >= 0).nonzero(as_tuple=True)
        own = inverse[parent]
        importance = decisions.importance[parent] * found.share[own, rank]
        image = decisions.image[parent]
        if self.settings.most is not None:
            stay = _most_important(image, importance, self.settings.most)
            parent, rank, own, importance, image = (part[stay] for part in (parent, rank, own, importance, image))
        at = (own, rank)
        merged = tuple(found.merged[index][place] for index, place in zip(own.tolist(), rank.tolist(), strict=True))
        places = found.kernel[at], found.row[at], found.column[at]
        figures = found.value[at], found.alpha[at], found.share[at]
        return Level(point, image, parent, *places, *figures, importance, found.maps[at], merged)

    def saliency(self, segment: Segment, decisions: DecisionRows, known: Known) -> Tensor:
        """The decisions' gradients with respect to the image, weighted by importance and summed, ``[n, C, H, W]``."""
        distinct, _ = decisions.unique()
        total = torch.zeros_like(self.inputs)
        for part in self._parts(segment, distinct):
            _, gradient = self.gradients(segment, part, known)
            total.index_add_(0, part.image, gradient * part.importance.view(-1, 1, 1, 1))
        return total

    def _parts(self, segment: Segment, decisions: DecisionRows) -> list[DecisionRows]:
        """Decisions in parts that fit in memory."""
        with torch.no_grad():
            found = run_graph(self.view, self.example[:1], [segment.source, *segment.nodes])
        largest = max(value.numel() for value in found.values() if isinstance(value, Tensor))
        size = max(1, VALUES_AT_ONCE // largest)
        return [decisions.part(start, start + size) for start in range(0, len(decisions.image), size)]

    def gradients(self, segment: Segment, part: DecisionRows, known: Known) -> tuple[Tensor, Tensor]:
        """The source's maps F and the gradients ``G = dF[k', x, y] / dF`` of the decisions above (Cheng et al. 2023, eqs. 1-2).

        Both ``[rows, C, H, W]``. The layers between pass importance on as well, if they were asked for.
        """
        stored = known[segment.source]
        assert isinstance(stored, Tensor)
        with torch.enable_grad():
            values = stored.index_select(0, part.image).requires_grad_()
            output, *inner = segment.run(values, self.inputs, known, part.image)
            gradient, *others = torch.autograd.grad(
                part.values(output).sum(), [values, *inner], allow_unused=True, materialize_grads=True
            )
        self._pass_on_between(part, dict(zip(segment.wanted[1:], zip(inner, others, strict=True), strict=True)))
        return values.detach(), gradient

    def _pass_on_between(self, part: DecisionRows, reached: Mapping[fx.Node, tuple[Tensor, Tensor]]) -> None:
        """Give importance to the layers whose output and gradient were ``reached``."""
        for layer, nodes in self._layers.items():
            calls = [reached[node] for node in nodes if node in reached]
            if calls:
                linear = isinstance(self.view.get_submodule(layer), nn.Linear)
                pairs = [(activation.detach(), slope) for activation, slope in calls]
                alpha, slope, _ = reduce_places(pairs, linear, len(part.image), layer)
                average = _baseline(self.settings.layer_averages, layer, alpha)
                _pass_on(self.layer_importance[layer], part, shares(alpha - slope * average))


def activation_maps(values: Tensor, gradient: Tensor, average: Tensor) -> Tensor:
    """``A = G * F`` (Cheng et al. 2023, eq. 3); ``G * (F - E F)`` with averages ``[C]`` other than zero."""
    return gradient * (values - average.view(1, -1, 1, 1))


def mean_over_places(maps: Tensor) -> Tensor:
    """``alpha_k``, the mean over places of ``A_k`` (Cheng et al. 2023, eq. 4): ``[rows, C, H, W]`` to ``[rows, C]``."""
    return maps.mean((2, 3))


def strongest_place(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the largest value of each map (Cheng et al. 2023, eq. 5): ``[rows, k, H, W]`` to ``[rows, k]`` each."""
    place = maps.flatten(2).argmax(2)
    return place // maps.shape[3], place % maps.shape[3]


def shares(alpha: Tensor) -> Tensor:
    """Contributions ``[rows, C]`` divided by the sum of their absolute values; zero where all are zero."""
    return alpha / alpha.abs().sum(1, keepdim=True).clamp(min=torch.finfo(alpha.dtype).tiny)


def _baseline(averages: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """What a layer's kernels are compared with, ``[C]``: their mean activations, or zero."""
    return averages[name].to(like) if name in averages else like.new_zeros(like.shape[1])


def _pass_on(total: Tensor, part: DecisionRows, share: Tensor) -> None:
    """Add ``I_k' * share_k|k'`` of each decision to a layer's kernels, ``[images, C]``."""
    total.index_add_(0, part.image, part.importance.unsqueeze(1) * share)


def _most_important(image: Tensor, importance: Tensor, most: int) -> Tensor:
    """Whether a row is among the most important ones of its image, bool ``[rows]``."""
    order = importance.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    ordered = image[order]
    start = torch.searchsorted(ordered, ordered)
    stay = torch.zeros_like(image, dtype=torch.bool)
    stay[order] = torch.arange(len(image), device=image.device) - start < most
    return stay
