"""Scoring aggregation along the edges of attribution graphs: which kernels must be kept for the network's own decisions.

A perceptron scores every kernel from the statistics of its embeddings over the graphs; the scores decide which share ``r`` of
a layer's kernels is kept; the kept kernels are aggregated along the Shapley edges up to the classes. A kernel that is not
kept takes its average value, so its Shapley values vanish: exactly in a layer, whose game is a sum, and to first order at a
join. Of a reader j's deviation from its average, the share ``rho_j = sum_i |w_ij| a_i rho_i`` is assumed to be left, where
the weights w are shares of the sum of absolute values; edges too weak to be stored count with their source's average. The
scores of the classes are their average plus ``sum_i phi_ic a_i rho_i``; what the stored edges do not explain is weighted by
the average of the sources. The scores are trained so that these reproduce the class probabilities of the whole network.

Part of the reconstruction of AGIC (Zheng et al., Neural Networks 179, 2024) from its abstract, which states that a scoring
aggregation network assesses the nodes, but not how. ``faithfulness/readout_scoring.py`` has a variant with a readout of each
layer instead of the edges.
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
    """Settings of the training of scores (AdamW, one-cycle learning rate).

    ``by_class``: for this share of the graphs in a step, kernels are scored by their embeddings over the graphs of the same
    class instead of over all graphs. ``temperature`` is that of the mask.

    Raises:
        UsageError: a value is out of range.
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
    """The class scores that are left when only some kernels are kept, computed along the edges of the graphs.

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
        """The head's output for each class, before any following operation (a softmax), averaged over positions: ``[graphs,
        classes]``.

        Args:
            keep: for each layer of ``kernels``, the degree to which each kernel is kept, ``[graphs, C]``, in [0, 1].
            rows: the indices of the graphs, int64 ``[graphs]``.
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
                typical = sources.mean(1, keepdim=True)  # for edges too weak to be stored
                if name == self._head:
                    values = weights * edges.size[rows].to(device).unsqueeze(2)
                    rest = self.outputs[rows] - self._average - values.sum(2)
                    return self._average + (values * held).sum(2) + rest * typical
                kept = edges.kept[rows].float().to(device)
                share = (weights.abs() * held).sum(2) + (1 - kept).clamp(min=0) * typical
            left[name] = share * keep[name] if name in keep else share
        raise AssertionError("the head comes after all nodes that lead to it")


def _head(graphs: AttributionGraphs, outputs: Tensor) -> str:
    """The last layer, or the sum of several, whose largest value most often is the predicted class."""
    kinds = graphs.layout.kinds
    classes = [name for name, kind in kinds.items() if kind == "class"]
    inner = {source for source, target in graphs.layout.links if target in classes}
    readers = {target for _, target in graphs.layout.links}
    found = [name for name in classes if name in readers and name not in inner]
    found = [name for name in found if graphs.layout.nodes[name] == outputs.shape[1]]
    if not found:
        raise InputError(
            "No links with a closed form lead to this network's classes, so nothing can be aggregated along the edges of its "
            "attribution graphs. Rank it by gap, or set [agic] permutations = 4 in the recipe to estimate the links."
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
    """Statistics of each kernel's embeddings: mean and standard deviation over graphs, standardised over all kernels.

    ``values`` is ``[1 + classes, kernels, 2 * width]``: first over all graphs, then over the graphs of each class; ``present``
    says which classes have graphs (the others use the profile over all graphs).
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
    """Scores of kernels from their profiles, by a shared perceptron."""

    def __init__(self, profiles: KernelProfiles, hidden: int) -> None:
        super().__init__()
        self.profiles = profiles
        width = profiles.values.shape[2]
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self) -> Tensor:
        """Scores ``[1 + classes, kernels]``: first over all graphs, then class by class."""
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
    """Learn which kernels must be kept to reproduce the network's own class probabilities (Kullback-Leibler divergence).

    In every step, each graph keeps a share of each layer's kernels that is drawn from 0.1 to 0.9. Seeded.

    Returns:
        The score of each kernel, the mean of its mask over keep rates: for each layer float32 ``[C]``, and by the profiles over
            each class's graphs ``[classes, C]`` (zero for a class without graphs).

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
