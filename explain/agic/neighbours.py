"""The neighbours of every kernel in a network's attribution graphs: the links with the strongest Shapley values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ...common.progress import Progress, silent
from ...network.images.images import Images
from ...network.network import Network
from ..shapley.explainer import ShapleyExplainer


@dataclass(frozen=True)
class Edge:
    """A link to or from a kernel of ``site``, averaged over some images.

    ``share`` is the mean of the signed Shapley value divided by the sum of the absolute values of all links into the same
    kernel; ``strength``, in [0, 1], is the mean of its absolute value.
    """

    site: str
    kernel: int
    share: float
    strength: float


@dataclass(frozen=True)
class Neighbours:
    """Each kernel's strongest edges, by site and then by kernel, the strongest first.

    ``incoming`` are the edges into it, ``outgoing`` those from it, as shares of all inputs of its readers. ``explainers`` names
    the origin of each site's incoming edges; ``unlinked``, for sites without a closed form, the operation that mixes channels.
    """

    incoming: Mapping[str, tuple[tuple[Edge, ...], ...]]
    outgoing: Mapping[str, tuple[tuple[Edge, ...], ...]]
    explainers: Mapping[str, str]
    unlinked: Mapping[str, str]
    images: int


def find_neighbours(
    network: Network,
    images: Images,
    background: Images,
    count: int = 6,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    progress: Progress = silent,
) -> Neighbours:
    """The ``count`` strongest edges into and from each kernel, by the mean absolute share over images.

    The values are those on the edges of attribution graphs (:mod:`.graphs`), but of all links rather than only the strongest of
    each image.

    Args:
        background: images that replace kernels left out of a coalition.

    Raises:
        InputError: the network cannot be traced.
    """
    explainer = ShapleyExplainer(network, background, device=device)
    sums: dict[str, tuple[Tensor, Tensor, Tensor, tuple[str, ...]]] = {}
    done = 0
    for batch, labels in images.batches(batch_size) if explainer.targets else ():
        for values in explainer(batch):
            size = values.values.abs().sum(2, keepdim=True).clamp(min=torch.finfo(values.values.dtype).tiny)
            shares = values.values / size
            signed, strength = shares.double().sum(0).cpu(), shares.abs().double().sum(0).cpu()
            if values.target in sums:
                signed, strength = signed + sums[values.target][1], strength + sums[values.target][2]
            sums[values.target] = (values.players.cpu(), signed, strength, values.sources)
        done += len(labels)
        progress(done, len(images))
    widths = {name: site.channels for name, site in explainer.topology.sites.items()}
    incoming: dict[str, tuple[tuple[Edge, ...], ...]] = {}
    collected: dict[str, list[list[Edge]]] = {}
    for target, (players, signed, strength, sources) in sums.items():
        ends = list(accumulate((widths[source] for source in sources), initial=0))
        incoming[target] = tuple(_into(players, signed / done, strength / done, sources, ends, count))
        sizes, means = (_by_player(players, values / done, ends[-1]) for values in (strength, signed))
        for source, (first, last) in zip(sources, pairwise(ends), strict=True):
            own = collected.setdefault(source, [[] for _ in range(widths[source])])
            parts = sizes[:, first:last], means[:, first:last]
            for kernel, edges in enumerate(_out_of(target, *parts, count)):
                own[kernel] += edges
    outgoing = {
        source: tuple(tuple(sorted(edges, key=lambda edge: -edge.strength)[:count]) for edges in kernels)
        for source, kernels in collected.items()
    }
    unlinked = {name: target.mixer for name, target in explainer.inexact.items()}
    return Neighbours(incoming, outgoing, dict(explainer.explainers), unlinked, done)


def _into(
    players: Tensor, signed: Tensor, strength: Tensor, sources: tuple[str, ...], ends: list[int], count: int
) -> Iterator[tuple[Edge, ...]]:
    """The strongest incoming edges of every channel of a target; entries without a player are not edges."""
    weight = torch.where(players >= 0, strength, -1)
    top = weight.topk(min(count, weight.shape[1]), dim=1).indices
    rows = (part.gather(1, top).tolist() for part in (players, signed, strength))
    for whose, shares, strengths in zip(*rows, strict=True):
        edges = []
        for player, share, size in zip(whose, shares, strengths, strict=True):
            if player >= 0 and size > 0:
                place = next(index for index, end in enumerate(ends[1:]) if player < end)
                edges.append(Edge(sources[place], player - ends[place], share, size))
        yield tuple(edges)


def _by_player(players: Tensor, values: Tensor, width: int) -> Tensor:
    """Convert ``[channels, candidates]`` to ``[channels, players]``; candidates without a player are dropped."""
    whole = values.new_zeros(len(values), width + 1)
    return whole.scatter_add_(1, players.where(players >= 0, width), values)[:, :width]


def _out_of(target: str, strength: Tensor, signed: Tensor, count: int) -> Iterator[list[Edge]]:
    """The strongest edges of every player into one target."""
    top = strength.topk(min(count, len(strength)), dim=0).indices
    columns = (part.T.tolist() for part in (top, signed.gather(0, top), strength.gather(0, top)))
    for kernels, shares, strengths in zip(*columns, strict=True):
        yield [
            Edge(target, kernel, share, size)
            for kernel, share, size in zip(kernels, shares, strengths, strict=True)
            if size > 0
        ]
