"""Shapley values between kernels: the contribution of each input channel of a site to the site's own channels.

Players are the channels of the sources. The payoff is the mean over positions of the target's output (after its own BatchNorm,
before its activation); the value of a coalition is its mean over a background of images that replace the players left out
(interventional Shapley values). If every channel that the target reads is a function of one player, the game is a sum and the
values have a closed form, also with BatchNorm, ReLU and pooling in between:

    phi[i -> j] = scale_j / positions * sum over taps of W[j, i, tap] * (m[i, tap](x) - E m[i, tap])

with ``m`` the sum over output positions of the input of a tap in channel i. At a join or gate ``g(u * s)`` of two branches
(``*``: sum or product), each channel is a game of two players, which needs the background's maps and not only their means:

    phi_u = 1/2 ([g(u * s) - E g(U * s)] + [E g(u * S) - E g(U * S)])

Sources: Shapley 1953; Lundberg and Lee, NeurIPS 2017. Zheng et al. (Neural Networks 179, 2024) put such values on the edges
of their attribution graphs; how they compute them is not public, so this is a reconstruction from the abstract.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...common.errors import InputError
from ...network.graph.execution import output_node, run_graph
from ...network.graph.topology import GATE, JOIN, Target, Topology, find_topology
from ...network.graph.trace import trace
from ...network.hooks import frozen
from ...network.images.images import Images
from ...network.network import Network
from .closed_form import Game, game_of
from .sampled import EstimateSettings, SampledGame, depends_on_batch

BACKGROUND = 32


@dataclass(frozen=True)
class ShapleyValues:
    """Shapley values of one target's incoming links, for some images.

    ``values``, ``[images, channels, candidates]``, in the unit of the target's output; ``players``, int64 ``[channels,
    candidates]``, gives their players: the channels of ``sources`` counted one after the other (``NONE`` for no player, with a
    value of zero). ``start`` is the index of the first image in the batch. ``explainer`` is ``closed form`` or the name of the
    estimator.
    """

    target: str
    sources: tuple[str, ...]
    players: Tensor
    values: Tensor
    start: int
    explainer: str = "closed form"


@dataclass(frozen=True)
class StrongestEdges:
    """The k strongest incoming edges of each target channel, by absolute value.

    ``players`` (int64) and ``weights`` are ``[images, channels, k]``; a weight is the signed value over the sum of the absolute
    values of *all* incoming edges. ``kept``, ``[images, channels]``, is the share of that sum in the k edges; ``size``, of the
    same shape, the sum itself.
    """

    target: str
    sources: tuple[str, ...]
    players: Tensor
    weights: Tensor
    kept: Tensor
    size: Tensor
    start: int
    explainer: str

    def __len__(self) -> int:
        return len(self.weights)


def strongest_edges(values: ShapleyValues, count: int) -> StrongestEdges:
    """The ``count`` strongest incoming edges of each channel, or all if there are fewer; normalised before the selection."""
    size = values.values.abs().sum(2)
    count = min(count, values.values.shape[2])
    chosen = values.values.abs().topk(count, dim=2).indices
    weights = values.values.gather(2, chosen) / size.clamp(min=torch.finfo(size.dtype).tiny).unsqueeze(2)
    players = values.players.expand(len(chosen), -1, -1).gather(2, chosen)
    kept = weights.abs().sum(2)
    return StrongestEdges(values.target, values.sources, players, weights, kept, size, values.start, values.explainer)


class ShapleyExplainer:
    """Computes the Shapley values of a network's links for batches of images, against a fixed background.

    Args:
        network: any network that torch.fx traces.
        background: calibration images that replace players left out of a coalition, usually ``BACKGROUND`` of them.
        targets: the sites whose incoming links are computed; None for all that do not read the image directly.
        joins: whether to include sums and products of branches.
        estimates: how values of links without a closed form are estimated; if None, they are left out, and ``inexact`` lists
            their targets. It always lists those after a BatchNorm without running statistics, since their images interact.

    Raises:
        InputError: the network cannot be traced, or a target does not exist.
    """

    def __init__(
        self,
        network: Network,
        background: Images,
        *,
        targets: Sequence[str] | None = None,
        joins: bool = True,
        estimates: EstimateSettings | None = None,
        device: str = "cpu",
    ) -> None:
        view = trace(network.module, network.example())
        self.topology = find_topology(view, network.example())
        self.view, self.device = view.to(device), device
        chosen = _chosen(self.topology, targets, joins)
        self.inexact: dict[str, Target] = {}
        self._games: dict[str, Game] = {}
        for name, target in chosen.items():
            if target.exact:
                self._games[name] = game_of(view, self.topology, target)
            elif estimates is not None and not depends_on_batch(view, self.topology, target):
                self._games[name] = SampledGame(view, self.topology, target, estimates)
            else:
                self.inexact[name] = target
        (images, _), *_ = background.batches(len(background))
        with torch.no_grad(), frozen(self.view):
            self._run(images.to(device), {})
            for game in self._games.values():
                game.learn()

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets whose values are computed, in network order."""
        return tuple(self._games)

    @property
    def explainers(self) -> dict[str, str]:
        """The origin of each target's values: the closed form, or the name of an estimator with its background."""
        return {name: game.explainer for name, game in self._games.items()}

    def __call__(
        self, images: Tensor, observers: Mapping[fx.Node, Callable[[Tensor], None]] | None = None
    ) -> Iterator[ShapleyValues]:
        """The values for a batch, target by target and some images at a time, from one forward pass.

        Args:
            images: normalised, ``[n, C, H, W]``.
            observers: functions to call with the values of nodes of ``view`` in the same pass.
        """
        with torch.no_grad(), frozen(self.view):
            self._run(images.to(self.device), observers or {})
        taken = {name: game.values() for name, game in self._games.items()}  # before another batch is read
        for name, game in self._games.items():
            for start, part in taken.pop(name):
                yield ShapleyValues(name, game.sources, game.players, part, start, game.explainer)

    def _run(self, images: Tensor, observers: Mapping[fx.Node, Callable[[Tensor], None]]) -> None:
        """Run one forward pass in which every game reads its values."""
        readers = {node: [observer] for node, observer in observers.items()}
        for game in self._games.values():
            for node, read in game.readers():
                readers.setdefault(node, []).append(read)
        changes = {node: functools.partial(_read_all, own) for node, own in readers.items()}
        run_graph(self.view, images, [output_node(self.view)], changes)


def _read_all(readers: Sequence[Callable[[Tensor], None]], value: Tensor) -> Tensor:
    for read in readers:
        read(value)
    return value


def _chosen(topology: Topology, targets: Sequence[str] | None, joins: bool) -> dict[str, Target]:
    for name in targets or ():
        if name not in topology.targets:
            known = ", ".join(list(topology.targets)[:40])
            raise InputError(f"The network has no layer or join {name!r} that reads others. It has: {known}.")
    every = topology.kernel_targets if targets is None else {name: topology.targets[name] for name in targets}
    return {name: target for name, target in every.items() if joins or target.site.kind not in (JOIN, GATE)}
