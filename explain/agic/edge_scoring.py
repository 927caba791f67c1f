"""Scoring aggregation along the edges of attribution graphs: which kernels must be kept for the network's own decisions.

A perceptron scores every kernel by what its embeddings are like over the graphs; the scores decide which share ``r`` of a
layer's kernels is kept; and what is kept is aggregated along the Shapley edges up to the classes. A kernel that is not kept
is what it usually is, so that its Shapley values vanish: into a layer, whose game is a sum, exactly these, and at a join to
first order. Of what moves a reader j away from its average the share ``rho_j = sum_i |w_ij| a_i rho_i`` is taken to be left
(with the weights w as shares of the sum of absolute values; edges too weak to be kept as their source's average). At the
classes the scores are their average plus ``sum_i phi_ic a_i rho_i``, and what the edges kept do not explain goes with the
average of the sources. The scores are trained so that these give the class probabilities of the network whole.

Part of the reconstruction of AGIC (Zheng et al., Neural Networks 179, 2024) from its abstract, which says that a scoring
aggregation network assesses nodes and not how. In ``scoring_aggregation`` a readout of each layer takes the place of the edges.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.errors import InputError, UsageError
from ...common.progress import Progress, silent
from ...network.graph.channel_origins import NONE
from .encoder import NEARLY_CONSTANT, Embeddings
from .graphs import AttributionGraphs
from .keep_masks import KEEP_RATES, LEAST_KEPT, MOST_KEPT, keep_masks


@dataclass(frozen=True)
class EdgeScoringSettings:
    """How scores are learned (AdamW, one cycle of the learning rate).

    ``by_class``: for this share of the graphs in a step, kernels are scored by their embeddings over the graphs of the same
    class instead of over all. ``temperature`` of the mask.

    Raises:
        UsageError: a value out of range.
    """

    steps: int = 480
    batch_size: int = 64
    hidden: int = 128
    by_class: float = 0.5
    temperature: float = 0.5
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of scoring must be at least 1 (got {getattr(self, name)}).")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} of scoring must be above 0 (got {getattr(self, name)}).")
        if not 0 <= self.by_class <= 1:
            raise UsageError(f"by_class must be between 0 and 1 (got {self.by_class}).")


class EdgeAggregation:
    """What is left of the class scores when only some kernels are kept, along the edges of the graphs.

    Raises:
        InputError: no edges lead to the classes.
    """

    def __init__(self, graphs: AttributionGraphs, device: str = "cpu") -> None:
        self.nodes, self._edges = graphs.layout.nodes, graphs.edges()
        outputs, self.labels = graphs.outputs()
        self._head = _head(graphs, outputs)
        self.outputs = graphs.class_values(self._head).to(device)
        self._average = self.outputs.mean(0)
        self._needed = _leading_to(self._head, {name: edges.sources for name, edges in self._edges.items()})
        kinds = graphs.layout.kinds
        self.kernels = tuple(name for name, kind in kinds.items() if kind == "kernel" and name in self._needed)

    def __call__(self, keep: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """What the head gives each class, before what is behind it (a softmax), averaged over places: ``[graphs, classes]``.

        Args:
            keep: for each layer of ``kernels`` how far each kernel is kept, ``[graphs, C]``, within [0, 1].
            rows: the graphs' numbers, int64 ``[graphs]``.
        """
        left: dict[str, Tensor] = {}
        device = self._average.device
        for name, count in self.nodes.items():
            if name not in self._needed:
                continue
            share: Tensor
            if name not in self._edges:
                share = torch.ones(len(rows), count, device=device)
            else:
                edges = self._edges[name]
                sources = torch.cat([left[source] for source in edges.sources], 1)
                players, weights = (
                    edges.players[rows].long().to(device),
                    edges.weights[rows].float().to(device),
                )
                held = sources.gather(1, players.clamp(min=NONE + 1).flatten(1)).view_as(players)
                typical = sources.mean(1, keepdim=True)  # for the edges that were too weak to be kept
                if name == self._head:
                    values = weights * edges.size[rows].to(device).unsqueeze(2)
                    rest = self.outputs[rows] - self._average - values.sum(2)
                    return self._average + (values * held).sum(2) + rest * typical
                kept = edges.kept[rows].float().to(device)
                share = (weights.abs() * held).sum(2) + (1 - kept).clamp(min=0) * typical
            left[name] = share * keep[name] if name in keep else share
        raise AssertionError("the head comes after all that leads to it")


def _head(graphs: AttributionGraphs, outputs: Tensor) -> str:
    """The last layer, or the sum of several, whose greatest value is the class that the network predicts most often."""
    kinds = graphs.layout.kinds
    classes = [name for name, kind in kinds.items() if kind == "class"]
    inner = {source for source, target in graphs.layout.links if target in classes}
    readers = {target for _, target in graphs.layout.links}
    found = [name for name in classes if name in readers and name not in inner]
    found = [name for name in found if graphs.layout.nodes[name] == outputs.shape[1]]
    if not found:
        raise InputError(
            "No links with a closed form lead to this network's classes, so nothing can be aggregated along the edges of its "
            "attribution graphs. Rank it by gap, or have the links estimated ([agic] permutations = 4 in the recipe)."
        )
    predictions = outputs.argmax(1)
    return max(found, key=lambda name: int((graphs.class_values(name).argmax(1) == predictions).sum()))


def _leading_to(head: str, sources: Mapping[str, Sequence[str]]) -> set[str]:
    found: set[str] = set()
    pending = [head]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += sources.get(name, ())
    return found


class KernelProfiles(nn.Module):
    """What each kernel's embeddings are like: mean and standard deviation over graphs, standardised over all kernels.

    ``values`` is ``[1 + classes, kernels, 2 * width]``: over all graphs first, then over each class's; ``present`` says which
    classes have graphs (the others have the profile over all).
    """

    values: Tensor
    present: Tensor

    def __init__(self, embeddings: Embeddings, layers: Sequence[str], classes: int) -> None:
        super().__init__()
        own = torch.cat([embeddings[name] for name in layers], 1)
        whole = _profile(own)
        center, spread = whole.mean(0), whole.std(0, correction=0)
        factor = torch.where(spread > NEARLY_CONSTANT * whole.abs().max(), 1 / spread, 0)
        rows = [(embeddings.labels == label).nonzero().flatten() for label in range(classes)]
        parts = [whole, *(_profile(own[row]) if len(row) else whole for row in rows)]
        self.register_buffer("values", (torch.stack(parts) - center) * factor)
        self.register_buffer("present", torch.tensor([True, *(len(row) > 0 for row in rows)]))


def _profile(values: Tensor) -> Tensor:
    values = values.float()
    return torch.cat([values.mean(0), values.std(0, correction=0)], 1)


class EdgeScoring(nn.Module):
    """Scores of kernels from their profiles, by one perceptron for all."""

    def __init__(self, profiles: KernelProfiles, hidden: int) -> None:
        super().__init__()
        self.profiles = profiles
        width = profiles.values.shape[2]
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self) -> Tensor:
        """``[1 + classes, kernels]``: over all graphs first, then class by class."""
        scores: Tensor = self.score(self.profiles.values).squeeze(2)
        return scores


def train_edge_scoring(
    graphs: AttributionGraphs,
    embeddings: Embeddings,
    settings: EdgeScoringSettings | None = None,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Learn which kernels must be kept for the network's own class probabilities (Kullback-Leibler divergence), when in every
    graph and step another share of each layer's, drawn from 0.1 to 0.9, is kept. Seeded.

    Returns:
        How readily each kernel is kept, the mean of its mask over keep rates: for each layer float32 ``[C]``, and by the
        profiles over each class's graphs ``[classes, C]`` (zero for a class without any).

    Raises:
        InputError: no edges lead to the classes.
    """
    settings = settings or EdgeScoringSettings()
    aggregation = EdgeAggregation(graphs, device)
    layers = aggregation.kernels
    sizes = [aggregation.nodes[name] for name in layers]
    wanted = aggregation.outputs.softmax(1)
    classes = max(graphs.layout.classes, int(aggregation.labels.max()) + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = EdgeScoring(KernelProfiles(embeddings, layers, classes), settings.hidden).to(device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
        done = 0
        while done < settings.steps:
            for rows in torch.split(torch.randperm(len(embeddings)), settings.batch_size)[: settings.steps - done]:
                rates = torch.empty(len(rows)).uniform_(LEAST_KEPT, MOST_KEPT).to(device)
                own = torch.where(torch.rand(len(rows)) < settings.by_class, aggregation.labels[rows] + 1, 0)
                masks = keep_masks(network()[own.to(device)], rates, sizes, settings.temperature)
                keep = dict(zip(layers, torch.split(masks, sizes, 1), strict=True))
                left = aggregation(keep, rows).log_softmax(1)
                loss = F.kl_div(left, wanted[rows.to(device)], reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                done += 1
                progress(done, settings.steps)
    return _kept(network, layers, sizes, settings.temperature)


@torch.no_grad()
def _kept(
    network: EdgeScoring, layers: Sequence[str], sizes: Sequence[int], temperature: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    scores = network()
    rates = [scores.new_full((len(scores),), rate) for rate in KEEP_RATES]
    masks = torch.stack([keep_masks(scores, rate, sizes, temperature) for rate in rates]).mean(0)
    masks = (masks * network.profiles.present.unsqueeze(1)).cpu()
    parts = torch.split(masks, list(sizes), 1)
    return (
        {name: part[0] for name, part in zip(layers, parts, strict=True)},
        {name: part[1:] for name, part in zip(layers, parts, strict=True)},
    )
