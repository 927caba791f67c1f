"""Where the channels of a value come from: backwards through a traced network to the sites whose channels are known.

Operations known to keep channels apart are passed. What any other operation on one tensor does to channels is probed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxPoolNd

from .execution import image_dependent, run_graph
from .leaf_modules import Add, Concatenate, Multiply, ZeroPadChannels
from .segment import Segment
from .shapes import is_shape
from .stand_ins import Subsample
from .trace import PER_CHANNEL

PROBE_BYTES = 2**27
FAR = 16
"""The least change of a channel in a probe, in units of the map's mean magnitude."""
CHAIN = 8
"""The longest chain of operations on one tensor that is probed as one."""
NONE = -1
"""The player of a channel that depends on none: padding, or a constant."""
_NOBODY = torch.tensor([NONE])

CHANNEL_DIM = 1
_ALONG_PLACES = (
    *(_MaxPoolNd, _AvgPoolNd, _LPPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, nn.Upsample, Subsample),
    *(_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd),
)
_SHAPED_AS = ("expand_as", "view_as", "reshape_as")
"""Methods that take the shape of a second tensor."""
ELEMENTWISE = tuple(kind for kind in PER_CHANNEL if kind not in (_BatchNorm, nn.PReLU))


@dataclass(frozen=True)
class Site:
    """A place whose channels are nodes of a graph and players of a game.

    ``node`` gives its value, ``reading`` the value after its own normalisation and activation, which the next sites read.
    ``dim`` is the dimension of the channels. ``classes``: its channels are the classes.
    """

    name: str
    kind: str
    node: fx.Node
    reading: fx.Node
    channels: int
    dim: int
    classes: bool = False


@dataclass(frozen=True)
class Origin:
    """Where the channels of a value come from.

    ``sources`` are sites in network order; their channels, one site after the other, are the players. ``players``, int64
    ``[channels]``, says on which player each channel depends (``NONE``: none). It is None if ``mixer`` mixes the channels.
    """

    sources: tuple[str, ...]
    players: Tensor | None
    mixer: str = ""


class OriginFinder:
    """Finds origins in a traced network, tracing back to the ``sites``, which are added from input to output.

    ``values`` holds every node's value for one image, ``dependent`` the nodes that depend on the image, ``modules`` the
    network's modules by name.
    """

    def __init__(self, view: fx.GraphModule, example: Tensor) -> None:
        self.view, self.example = view, example
        self.modules = dict(view.named_modules())
        self.dependent = image_dependent(view)
        with torch.no_grad():
            self.values = run_graph(view, example, [node for node in view.graph.nodes if node.op != "output"])
        self.sites: dict[str, Site] = {}
        self._order = {node: place for place, node in enumerate(view.graph.nodes)}
        self._of_node: dict[fx.Node, Site] = {}
        self._origins: dict[tuple[fx.Node, int], Origin] = {}

    def add(self, site: Site) -> None:
        """Add a site, the origin of the values that follow it."""
        self.sites[site.name] = self._of_node[site.node] = site

    def origin(self, node: fx.Node, dim: int) -> Origin:
        """The origin of the channels along ``dim`` of a node's value."""
        dim %= self.values[node].dim()
        key = node, dim
        if key not in self._origins:
            self._origins[key] = self._walk_back(node, dim)
        return self._origins[key]

    def _walk_back(self, node: fx.Node, dim: int) -> Origin:
        width = self.values[node].shape[dim]
        if node not in self.dependent:
            return Origin((), torch.full((width,), NONE))
        if node in self._of_node:
            site = self._of_node[node]
            if site.dim == dim:
                return Origin((site.name,), torch.arange(width))
            return Origin((site.name,), None, f"{node.name} along another dimension")
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        sources = self._sources(node)
        if keeps_apart(module, dim):
            return self.origin(sources[0], dim)
        if isinstance(module, _BatchNorm):
            return self._mixed(node, sources)
        if dim == CHANNEL_DIM and isinstance(module, _ALONG_PLACES) and self._same_rank(node, sources[0]):
            return self.origin(sources[0], dim)
        if isinstance(module, ZeroPadChannels) and dim == CHANNEL_DIM:
            return _picked(self.origin(sources[0], dim), module.source)
        if isinstance(module, Concatenate):
            return self._concatenated(node, module.dim % self.values[node].dim(), dim)
        if isinstance(module, Add | Multiply):  # no site: all of its channels are functions of the same ones
            first = next((source for source in sources if self._same_rank(node, source)), None)
            return self._mixed(node, sources) if first is None else broadcast_origin(self.origin(first, dim), width)
        if len(sources) == 1:
            return self._through(node, sources[0], dim)
        return self._mixed(node, sources)

    def _same_rank(self, node: fx.Node, source: fx.Node) -> bool:
        return bool(self.values[node].dim() == self.values[source].dim())

    def _concatenated(self, node: fx.Node, along: int, dim: int) -> Origin:
        origins = [self.origin(source, dim) for source in node.args]  # type: ignore[arg-type]
        if along == dim:
            return self._side_by_side(origins)
        varying = [origin for origin in origins if origin.sources]
        if all(same_origin(origin, varying[0]) for origin in varying):  # the others are constants, as a class token is
            return varying[0]
        return self._mixed(node, [source for source in node.all_input_nodes if source in self.dependent])

    def _side_by_side(self, origins: list[Origin]) -> Origin:
        """The channels of several values one after the other; a player that occurs in several counts once."""
        names = self._in_order(name for origin in origins for name in origin.sources)
        first = dict(zip(names, accumulate((self.sites[name].channels for name in names), initial=0), strict=False))
        players = []
        for origin in origins:
            if origin.players is None:
                return Origin(names, None, origin.mixer)
            place = torch.cat(
                [torch.arange(self.sites[name].channels) + first[name] for name in origin.sources] or [_NOBODY]
            )
            players.append(torch.where(origin.players == NONE, NONE, place[origin.players.clamp(min=0)]))
        return Origin(names, torch.cat(players))

    def _in_order(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(set(names), key=lambda name: self._order[self.sites[name].node]))

    def _mixed(self, node: fx.Node, sources: Iterable[fx.Node]) -> Origin:
        """Channels are mixed: every channel depends on all that the sources depend on."""
        found: set[str] = set()
        for source in sources:
            while not isinstance(self.values[source], Tensor):  # a tuple: what it was made from
                inner = self._sources(source)
                if len(inner) != 1:
                    found.update(name for each in inner for name in self._mixed(each, [each]).sources)
                    break
                source = inner[0]
            else:
                found.update(self.origin(source, CHANNEL_DIM).sources)
        kind = f" ({type(self.modules[str(node.target)]).__name__})" if node.op == "call_module" else ""
        name = str(node.target) if node.op == "call_module" else node.name
        return Origin(self._in_order(found), None, f"{name}{kind}")

    def _through(self, node: fx.Node, first: fx.Node, dim: int) -> Origin:
        """Through operations on one tensor, by probing on which of its channels each channel of the result depends.

        The whole chain of such operations is probed first: a shuffle splits channels and joins them again.
        """
        chain: list[fx.Node] = []
        source: fx.Node | None = first
        while source is not None and len(chain) < CHAIN:
            if isinstance(self.values[source], Tensor):
                chain.append(source)
                if source in self._of_node or source.op not in ("call_function", "call_method"):
                    break
            source = self._only_source(source)
        for source in reversed(chain):
            shape = self.values[source].shape
            dims = [each for each in (dim, CHANNEL_DIM, len(shape) - 1) if 0 < each < len(shape)]
            wide = [each for each in dims if shape[each] > 1] or dims
            for source_dim in dict.fromkeys(wide):
                shown = self._probe(node, source, source_dim, dim)
                if shown is not None:
                    return _picked(self.origin(source, source_dim), shown)
        return self._mixed(node, [first])

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The values that a node depends on, except through their shapes."""
        given = node.all_input_nodes[:1] if node.target in _SHAPED_AS else node.all_input_nodes
        return [source for source in given if source in self.dependent and not is_shape(source)]

    def _only_source(self, node: fx.Node) -> fx.Node | None:
        """The one value that a node depends on, except through its shape; None if there are several."""
        sources = self._sources(node)
        return sources[0] if len(sources) == 1 else None

    def _probe(self, node: fx.Node, source: fx.Node, source_dim: int, dim: int) -> Tensor | None:
        """For each channel of ``node`` the channel of ``source`` that it depends on (``NONE``: none); None if on several."""
        value = self.values[source]
        width, generator = value.shape[source_dim], torch.Generator().manual_seed(0)
        segment = Segment(self.view, source, [node])
        base = torch.randn(value.shape, generator=generator).to(value)
        far = FAR * (1 + value.abs().mean()) * (1 + torch.rand(value.shape, generator=generator)).to(value)
        size = max(value.numel(), self.values[node].numel()) * value.element_size()
        reached = torch.zeros(self.values[node].shape[dim], width, dtype=torch.bool)
        with torch.no_grad():
            known = {read: self.values[read] for read in segment.reads if read in self.values}
            for channels in _few_then_all(width, max(1, PROBE_BYTES // (2 * size))):
                rows = torch.zeros(2 * len(channels) + 1, dtype=torch.long)
                varied = base.repeat(len(rows), *[1] * (value.dim() - 1))
                for row, channel in enumerate(channels.tolist()):  # up and down: a maximum may hide one of them
                    own = far[0].select(source_dim - 1, channel)
                    varied[row].select(source_dim - 1, channel).add_(own)
                    varied[row + len(channels)].select(source_dim - 1, channel).sub_(own)
                (result,) = segment.run(varied, self.example, known, rows)
                if not isinstance(result, Tensor) or len(result) != len(rows) or result.dim() < 2:
                    return None
                moved = (result[:-1] != result[-1:]) & ~(result[:-1].isnan() & result[-1:].isnan())
                moved = moved.movedim(dim, 1).reshape(2, len(channels), len(reached), -1)
                reached[:, channels] = moved.any(3).any(0).T.cpu()
                if bool((reached.sum(1) > 1).any()):
                    return None
        return torch.where(reached.any(1), reached.int().argmax(1), NONE)


def keeps_apart(module: nn.Module | None, dim: int) -> bool:
    """Whether a module acts on each channel of ``dim`` and each image separately; not if it normalises by the batch."""
    if isinstance(module, ELEMENTWISE) or dim != CHANNEL_DIM:
        return isinstance(module, ELEMENTWISE)
    return isinstance(module, nn.PReLU) or (isinstance(module, _BatchNorm) and module.running_mean is not None)


def broadcast_origin(origin: Origin, channels: int) -> Origin:
    """The origin of ``channels`` channels to which one may be broadcast."""
    if origin.players is None or len(origin.players) == channels:
        return origin
    return Origin(origin.sources, origin.players.expand(channels))


def _picked(origin: Origin, shown: Tensor) -> Origin:
    """The origin of channels that each depend on one of ``origin``'s, or on none."""
    if origin.players is None:
        return origin
    picked = origin.players[shown.clamp(min=0).cpu()]
    players = torch.where(shown.cpu() == NONE, NONE, picked)
    return Origin(origin.sources if bool((players != NONE).any()) else (), players)


def same_origin(first: Origin, second: Origin) -> bool:
    """Whether channels are known to come from the same ones."""
    if first.players is None or second.players is None or first.sources != second.sources:
        return False
    return bool(torch.equal(first.players, second.players))


def _few_then_all(count: int, most: int) -> Iterator[Tensor]:
    """Indices in parts of at most ``most``; the first is small, since it suffices if all channels mix."""
    start = 0
    while start < count:
        stop = min(count, start + min(most, 8 if start == 0 else most))
        yield torch.arange(start, stop)
        start = stop
