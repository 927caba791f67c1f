"""Which kernel feeds which: the links between layers, joins and the classifier of any network that torch.fx traces.

A *site* is a place whose channels are told apart: the image, a convolution, a linear layer, a sum of branches (a join), a
product of branches (a gate). A *link* leads from one site to the next that reads it. Between two sites there are only
operations that keep channels apart (normalisation in evaluation mode, activations, pooling, slices, shuffles), so that every
channel which the target reads is a function of one channel of one source: then what the target sees is a sum over its sources'
channels, or for a join a function of two, and Shapley values have a closed form. Where something mixes channels on the way
(LayerNorm, GroupNorm, attention) the link is not exact, and says by what.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _LPPoolNd, _MaxPoolNd

from .execution import Segment, image_dependent, output_node, run_graph
from .stand_ins import Subsample
from .trace import PER_CHANNEL, Add, Concatenate, Multiply, ZeroPadChannels
from .tracer import is_shape

IMAGE, CONVOLUTION, LINEAR, JOIN, GATE = "image", "convolution", "linear", "join", "gate"
PROBE_BYTES = 2**27
FAR = 16
"""By how much a channel is moved at least, in units of the map's size, to see what moves with it."""
CHAIN = 8
"""Operations on one tensor, one after the other, that are looked through together."""
NONE = -1
"""A channel that shows no player: padding, or a constant."""
_NOBODY = torch.tensor([NONE])

_CHANNEL_DIM = 1
_ALONG_PLACES = (
    *(_MaxPoolNd, _AvgPoolNd, _LPPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, nn.Upsample, Subsample),
    *(_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd),
)
_SHAPED_AS = ("expand_as", "view_as", "reshape_as")
"""Methods that take the shape of a second tensor."""
_ELEMENTWISE = tuple(kind for kind in PER_CHANNEL if kind not in (_BatchNorm, nn.PReLU))


@dataclass(frozen=True)
class Site:
    """A place whose channels are nodes of a graph and players of a game.

    ``node`` gives its value; ``reading`` the same behind its own normalisation and activation, where the next read it.
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
    ``[channels]``, says which player each channel shows (``NONE``: none). It is None where channels mix, by ``mixer``.
    """

    sources: tuple[str, ...]
    players: Tensor | None
    mixer: str = ""


@dataclass(frozen=True)
class Operand:
    """A value that a target reads, along which dimension its channels lie, and where they come from."""

    node: fx.Node
    dim: int
    origin: Origin


@dataclass(frozen=True)
class Target:
    """A site with the values that it reads: one for a layer, two for a join or gate."""

    site: Site
    operands: tuple[Operand, ...]
    mixer: str = ""

    @property
    def exact(self) -> bool:
        """Whether the Shapley values of its incoming links have a closed form."""
        return not self.mixer

    @property
    def sources(self) -> tuple[str, ...]:
        """All sites that feed it, those of the first operand first."""
        return tuple(dict.fromkeys(name for operand in self.operands for name in operand.origin.sources))


@dataclass(frozen=True)
class Link:
    """From one site to the next that reads it. ``mixer`` names what keeps its Shapley values from being exact, if anything."""

    source: str
    target: str
    mixer: str = ""

    @property
    def exact(self) -> bool:
        return not self.mixer


@dataclass(frozen=True)
class Topology:
    """The sites of a traced network in its order, and what each reads."""

    view: fx.GraphModule
    sites: dict[str, Site]
    targets: dict[str, Target]

    @property
    def links(self) -> tuple[Link, ...]:
        """All links, those from the image among them."""
        return tuple(
            Link(source, name, target.mixer) for name, target in self.targets.items() for source in target.sources
        )

    @property
    def kernel_targets(self) -> dict[str, Target]:
        """Targets that no channel of the image feeds directly."""
        images = {name for name, site in self.sites.items() if site.kind == IMAGE}
        fed = {name: target for name, target in self.targets.items() if target.sources}
        return {name: target for name, target in fed.items() if not images & set(target.sources)}


def find_topology(view: fx.GraphModule, example: Tensor) -> Topology:
    """The sites and links of a traced network.

    A layer that is called several times has a site for every call. A sum or product of two functions of the same channels
    (``x * sigmoid(x)``) is an activation, no join.

    Args:
        view: what ``trace`` gave, in evaluation mode.
        example: ``[n, C, H, W]``; one image of it is run.
    """
    return _Finder(view, example[:1]).find()


def own_modules(view: fx.GraphModule, site: Site) -> list[nn.Module]:
    """The modules that act on a site's output alone, from behind its operation to where the next read it."""
    found: list[nn.Module] = []
    node = site.reading
    while node is not site.node:
        found.append(view.get_submodule(str(node.target)))
        node = node.all_input_nodes[0]
    return found[::-1]


def class_nodes(view: fx.GraphModule) -> frozenset[fx.Node]:
    """The calls of layers behind which no other lies on the way to the output: their channels are the classes."""
    return frozenset(node for node in _down_to_classes(view) if _is_layer(view, node))


def _down_to_classes(view: fx.GraphModule) -> set[fx.Node]:
    """From the output back to the last layers: all of these tell the classes."""
    seen: set[fx.Node] = set()
    pending = [output_node(view)]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if not _is_layer(view, node):
            pending += node.all_input_nodes
    return seen


def _is_layer(view: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(view.get_submodule(str(node.target)), _ConvNd | nn.Linear)


class _Finder:
    def __init__(self, view: fx.GraphModule, example: Tensor) -> None:
        self.view, self.example = view, example
        self.modules = dict(view.named_modules())
        self.dependent = image_dependent(view)
        with torch.no_grad():
            self.values = run_graph(view, example, [node for node in view.graph.nodes if node.op != "output"])
        self.order = {node: place for place, node in enumerate(view.graph.nodes)}
        self.sites: dict[str, Site] = {}
        self.of_node: dict[fx.Node, Site] = {}
        self.targets: dict[str, Target] = {}
        self.origins: dict[tuple[fx.Node, int], Origin] = {}

    def find(self) -> Topology:
        telling = _down_to_classes(self.view)
        for node in self._reaching_output():
            value = self.values.get(node)
            if node.op == "placeholder":
                self._add_site(node, IMAGE, _CHANNEL_DIM)
            elif not isinstance(value, Tensor) or node.op != "call_module":
                continue
            else:
                module = self.modules[str(node.target)]
                if isinstance(module, _ConvNd | nn.Linear):
                    linear = isinstance(module, nn.Linear)
                    source, dim = node.all_input_nodes[0], -1 if linear else _CHANNEL_DIM
                    operands = (self._operand(source, dim),)
                    mixer = operands[0].origin.mixer
                    if isinstance(module, _ConvTransposeNd) or (not linear and module.weight.dim() != 4):
                        mixer = mixer or f"{node.target} ({type(module).__name__})"
                    site = self._add_site(node, LINEAR if linear else CONVOLUTION, dim, node in telling)
                    self.targets[site.name] = Target(site, operands, mixer)
                elif isinstance(module, Add | Multiply):
                    self._add_join(node, JOIN if isinstance(module, Add) else GATE, node in telling)
        return Topology(self.view, self.sites, self.targets)

    def _add_join(self, node: fx.Node, kind: str, classes: bool) -> None:
        branches = [source for source in node.args if source in self.dependent]
        if len(branches) < 2:
            return
        operands = tuple(self._operand(source, self._dim_of_join(node)) for source in branches)  # type: ignore[arg-type]
        if _same(operands[0].origin, operands[1].origin) or self._root(branches[0]) is self._root(branches[1]):
            return
        mixer = next((operand.origin.mixer for operand in operands if operand.origin.mixer), "")
        site = self._add_site(node, kind, operands[0].dim, classes)
        operands = tuple(self._widened(operand, site.channels) for operand in operands)
        self.targets[site.name] = Target(site, operands, mixer)

    def _root(self, node: Any) -> fx.Node:
        """What a value is an elementwise function of."""
        while node.op == "call_module" and isinstance(self.modules[str(node.target)], _ELEMENTWISE):
            node = node.args[0]
        assert isinstance(node, fx.Node)
        return node

    def _dim_of_join(self, node: fx.Node) -> int:
        """Second, or last where only that keeps channels apart (as in networks that keep channels last)."""
        sources = [source for source in node.all_input_nodes if source in self.dependent]
        apart = {
            dim: sum(self._origin(source, dim).players is not None for source in sources) for dim in (_CHANNEL_DIM, -1)
        }
        return -1 if apart[-1] > apart[_CHANNEL_DIM] else _CHANNEL_DIM

    def _widened(self, operand: Operand, channels: int) -> Operand:
        """One channel that is broadcast to all stands for all."""
        return Operand(operand.node, operand.dim, _broadcast(operand.origin, channels))

    def _add_site(self, node: fx.Node, kind: str, dim: int, classes: bool = False) -> Site:
        value, reading = self.values[node], node
        dim %= value.dim()
        while kind != IMAGE and len(reading.users) == 1:
            reader = next(iter(reading.users))
            if reader.op != "call_module" or not _keeps_apart(self.modules[str(reader.target)], dim):
                break
            reading = reader
        name = self._free_name(_site_name(node, kind))
        site = Site(name, kind, node, reading, value.shape[dim], dim, classes)
        self.sites[name] = self.of_node[node] = site
        return site

    def _free_name(self, name: str) -> str:
        count, free = 1, name
        while free in self.sites:
            count += 1
            free = f"{name}, call {count}"
        return free

    def _operand(self, node: fx.Node, dim: int) -> Operand:
        return Operand(node, dim % self.values[node].dim(), self._origin(node, dim))

    def _origin(self, node: fx.Node, dim: int) -> Origin:
        dim %= self.values[node].dim()
        key = node, dim
        if key not in self.origins:
            self.origins[key] = self._walk_back(node, dim)
        return self.origins[key]

    def _walk_back(self, node: fx.Node, dim: int) -> Origin:
        width = self.values[node].shape[dim]
        if node not in self.dependent:
            return Origin((), torch.full((width,), NONE))
        if node in self.of_node:
            site = self.of_node[node]
            if site.dim == dim:
                return Origin((site.name,), torch.arange(width))
            return Origin((site.name,), None, f"{node.name} along another dimension")
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        sources = self._sources(node)
        if _keeps_apart(module, dim):
            return self._origin(sources[0], dim)
        if isinstance(module, _BatchNorm):
            return self._mixed(node, sources)
        if dim == _CHANNEL_DIM and isinstance(module, _ALONG_PLACES) and self._same_rank(node, sources[0]):
            return self._origin(sources[0], dim)
        if isinstance(module, ZeroPadChannels) and dim == _CHANNEL_DIM:
            return _picked(self._origin(sources[0], dim), module.source)
        if isinstance(module, Concatenate):
            return self._concatenated(node, module.dim % self.values[node].dim(), dim)
        if isinstance(module, Add | Multiply):  # no site: all of its channels are functions of the same ones
            first = next((source for source in sources if self._same_rank(node, source)), None)
            return self._mixed(node, sources) if first is None else _broadcast(self._origin(first, dim), width)
        if len(sources) == 1:
            return self._through(node, sources[0], dim)
        return self._mixed(node, sources)

    def _same_rank(self, node: fx.Node, source: fx.Node) -> bool:
        return bool(self.values[node].dim() == self.values[source].dim())

    def _concatenated(self, node: fx.Node, along: int, dim: int) -> Origin:
        origins = [self._origin(source, dim) for source in node.args]  # type: ignore[arg-type]
        if along == dim:
            return self._side_by_side(origins)
        varying = [origin for origin in origins if origin.sources]
        if all(_same(origin, varying[0]) for origin in varying):  # the others are constants, as a class token is
            return varying[0]
        return self._mixed(node, [source for source in node.all_input_nodes if source in self.dependent])

    def _side_by_side(self, origins: list[Origin]) -> Origin:
        """The channels of several values one after the other; a player that several of them show counts once."""
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
        return tuple(sorted(set(names), key=lambda name: self.order[self.sites[name].node]))

    def _mixed(self, node: fx.Node, sources: Iterable[fx.Node]) -> Origin:
        """Channels cannot be told apart: all that reaches the sources reaches every channel."""
        found: set[str] = set()
        for source in sources:
            while not isinstance(self.values[source], Tensor):  # a tuple: what it was made from
                inner = self._sources(source)
                if len(inner) != 1:
                    found.update(name for each in inner for name in self._mixed(each, [each]).sources)
                    break
                source = inner[0]
            else:
                found.update(self._origin(source, _CHANNEL_DIM).sources)
        kind = f" ({type(self.modules[str(node.target)]).__name__})" if node.op == "call_module" else ""
        name = str(node.target) if node.op == "call_module" else node.name
        return Origin(self._in_order(found), None, f"{name}{kind}")

    def _through(self, node: fx.Node, first: fx.Node, dim: int) -> Origin:
        """Through operations on one tensor: tried out which channel of it each channel of the result depends on.

        From as far back as such operations go, if that tells channels apart: a shuffle splits them and puts them together.
        """
        chain: list[fx.Node] = []
        source: fx.Node | None = first
        while source is not None and len(chain) < CHAIN:
            if isinstance(self.values[source], Tensor):
                chain.append(source)
                if source in self.of_node or source.op not in ("call_function", "call_method"):
                    break
            source = self._only_source(source)
        for source in reversed(chain):
            shape = self.values[source].shape
            dims = [each for each in (dim, _CHANNEL_DIM, len(shape) - 1) if 0 < each < len(shape)]
            wide = [each for each in dims if shape[each] > 1] or dims
            for source_dim in dict.fromkeys(wide):
                shown = self._probe(node, source, source_dim, dim)
                if shown is not None:
                    return _picked(self._origin(source, source_dim), shown)
        return self._mixed(node, [first])

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """The values that a node depends on, other than through their shapes."""
        given = node.all_input_nodes[:1] if node.target in _SHAPED_AS else node.all_input_nodes
        return [source for source in given if source in self.dependent and not is_shape(source)]

    def _only_source(self, node: fx.Node) -> fx.Node | None:
        """The one value that a node depends on, other than through its shape; None if there are several."""
        sources = self._sources(node)
        return sources[0] if len(sources) == 1 else None

    def _probe(self, node: fx.Node, source: fx.Node, source_dim: int, dim: int) -> Tensor | None:
        """For each channel of ``node`` the one channel of ``source`` that it depends on, ``NONE`` for none; None if several."""
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
                for row, channel in enumerate(channels.tolist()):  # up and down: the greatest of several shows only one
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

    def _reaching_output(self) -> list[fx.Node]:
        """Nodes that depend on the image and reach the output with more than a shape, in order."""
        needed, pending = set(), [output_node(self.view)]
        while pending:
            node = pending.pop()
            if node not in needed and not is_shape(node):
                needed.add(node)
                pending += node.all_input_nodes
        return [node for node in self.view.graph.nodes if node in needed and node in self.dependent]


def _keeps_apart(module: nn.Module | None, dim: int) -> bool:
    """Whether a module acts on each channel of ``dim`` by itself, and on each image: not if it normalises by the batch."""
    if isinstance(module, _ELEMENTWISE) or dim != _CHANNEL_DIM:
        return isinstance(module, _ELEMENTWISE)
    return isinstance(module, nn.PReLU) or (isinstance(module, _BatchNorm) and module.running_mean is not None)


def _broadcast(origin: Origin, channels: int) -> Origin:
    """One channel stands for all that it is broadcast to."""
    if origin.players is None or len(origin.players) == channels:
        return origin
    return Origin(origin.sources, origin.players.expand(channels))


def _picked(origin: Origin, shown: Tensor) -> Origin:
    """The origin of channels that each show one of ``origin``'s, or none."""
    if origin.players is None:
        return origin
    picked = origin.players[shown.clamp(min=0).cpu()]
    players = torch.where(shown.cpu() == NONE, NONE, picked)
    return Origin(origin.sources if bool((players != NONE).any()) else (), players)


def _same(first: Origin, second: Origin) -> bool:
    if first.players is None or second.players is None or first.sources != second.sources:
        return False
    return bool(torch.equal(first.players, second.players))


def _site_name(node: fx.Node, kind: str) -> str:
    """A layer by its name, a join by that of the block that it closes."""
    if kind in (CONVOLUTION, LINEAR):
        return str(node.target)
    if kind == IMAGE:
        return IMAGE
    scopes: dict[str, Any] = node.meta.get("nn_module_stack", {})
    blocks = [path for path, _ in scopes.values() if path]
    return f"{blocks[-1]}.{kind}" if blocks else kind


def _few_then_all(count: int, most: int) -> Iterator[Tensor]:
    """Indices in parts of at most ``most``; first a few, which tell enough where all mix with all."""
    start = 0
    while start < count:
        stop = min(count, start + min(most, 8 if start == 0 else most))
        yield torch.arange(start, stop)
        start = stop
