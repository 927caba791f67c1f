"""Which kernel feeds which: the links between layers, joins and the classifier of any network that torch.fx traces.

A *site* is a place whose channels are known: the image, a convolution, a linear layer, a sum of branches (a join), a product
of branches (a gate). A *link* leads from a site to the next site that reads it. Operations between two sites usually keep
channels apart (normalisation in evaluation mode, activations, pooling, slices, shuffles), so that every channel that the target
reads is a function of one channel of one source. The target's value is then a sum over its sources' channels, or for a join a
function of two, and Shapley values have a closed form. If an operation on the way mixes channels (LayerNorm, GroupNorm,
attention), the link is not exact and names the operation.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .channel_origins import (
    CHANNEL_DIM,
    ELEMENTWISE,
    Origin,
    OriginFinder,
    Site,
    broadcast_origin,
    keeps_apart,
    same_origin,
)
from .execution import output_node
from .leaf_modules import Add, Multiply
from .reach import needed_for
from .shapes import is_shape

IMAGE, CONVOLUTION, LINEAR, JOIN, GATE = "image", "convolution", "linear", "join", "gate"


@dataclass(frozen=True)
class Operand:
    """A value that a target reads: its node, the dimension of its channels, and their origin."""

    node: fx.Node
    dim: int
    origin: Origin


@dataclass(frozen=True)
class Target:
    """A site with the values that it reads: one for a layer, two or more for a join or gate."""

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
    """A link from a site to the next that reads it. ``mixer`` names the operation that mixes channels, if there is one."""

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
        """All links, including those from the image."""
        return tuple(
            Link(source, name, target.mixer) for name, target in self.targets.items() for source in target.sources
        )

    @property
    def kernel_targets(self) -> dict[str, Target]:
        """The targets that read kernels only, not the image."""
        images = {name for name, site in self.sites.items() if site.kind == IMAGE}
        fed = {name: target for name, target in self.targets.items() if target.sources}
        return {name: target for name, target in fed.items() if not images & set(target.sources)}


def find_topology(view: fx.GraphModule, example: Tensor) -> Topology:
    """The sites and links of a traced network.

    A layer that is called several times has a site for every call. A sum or product of two functions of the same channels
    (``x * sigmoid(x)``) is an activation rather than a join.

    Args:
        view: the network from ``trace``, in evaluation mode.
        example: ``[n, C, H, W]``, of which the first image is run.
    """
    return _Finder(view, example[:1]).find()


def own_modules(view: fx.GraphModule, site: Site) -> list[nn.Module]:
    """The normalisation and activation of a site: the modules between its operation and its readers, in order."""
    found: list[nn.Module] = []
    node = site.reading
    while node is not site.node:
        found.append(view.get_submodule(str(node.target)))
        node = node.all_input_nodes[0]
    return found[::-1]


def class_nodes(view: fx.GraphModule) -> frozenset[fx.Node]:
    """The calls of the last layers before the output, whose channels are the classes."""
    return frozenset(node for node in _down_to_classes(view) if _is_layer(view, node))


def _down_to_classes(view: fx.GraphModule) -> set[fx.Node]:
    """The nodes from the last layers to the output."""
    return needed_for([output_node(view)], stop=lambda node: _is_layer(view, node))


def _is_layer(view: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(view.get_submodule(str(node.target)), _ConvNd | nn.Linear)


class _Finder:
    def __init__(self, view: fx.GraphModule, example: Tensor) -> None:
        self.view, self.origins = view, OriginFinder(view, example)
        self.values, self.dependent, self.modules = self.origins.values, self.origins.dependent, self.origins.modules
        self.targets: dict[str, Target] = {}

    def find(self) -> Topology:
        telling = _down_to_classes(self.view)
        for node in self._reaching_output():
            value = self.values.get(node)
            if node.op == "placeholder":
                self._add_site(node, IMAGE, CHANNEL_DIM)
                continue
            if not isinstance(value, Tensor) or node.op != "call_module":
                continue
            module = self.modules[str(node.target)]
            if isinstance(module, _ConvNd | nn.Linear):
                self._add_layer(node, module, node in telling)
            elif isinstance(module, Add | Multiply):
                self._add_join(node, JOIN if isinstance(module, Add) else GATE, node in telling)
        return Topology(self.view, self.origins.sites, self.targets)

    def _add_layer(self, node: fx.Node, module: _ConvNd | nn.Linear, classes: bool) -> None:
        linear = isinstance(module, nn.Linear)
        dim = -1 if linear else CHANNEL_DIM
        operand = self._operand(node.all_input_nodes[0], dim)
        mixer = operand.origin.mixer
        if isinstance(module, _ConvTransposeNd) or (not linear and module.weight.dim() != 4):
            mixer = mixer or f"{node.target} ({type(module).__name__})"
        site = self._add_site(node, LINEAR if linear else CONVOLUTION, dim, classes)
        self.targets[site.name] = Target(site, (operand,), mixer)

    def _add_join(self, node: fx.Node, kind: str, classes: bool) -> None:
        branches = [source for source in node.args if source in self.dependent]
        if len(branches) < 2:
            return
        operands = tuple(self._operand(source, self._dim_of_join(node)) for source in branches)  # type: ignore[arg-type]
        if same_origin(operands[0].origin, operands[1].origin) or self._root(branches[0]) is self._root(branches[1]):
            return
        mixer = next((operand.origin.mixer for operand in operands if operand.origin.mixer), "")
        site = self._add_site(node, kind, operands[0].dim, classes)
        operands = tuple(self._widened(operand, site.channels) for operand in operands)
        self.targets[site.name] = Target(site, operands, mixer)

    def _root(self, node: Any) -> fx.Node:
        """The node of which a value is an elementwise function."""
        while node.op == "call_module" and isinstance(self.modules[str(node.target)], ELEMENTWISE):
            node = node.args[0]
        assert isinstance(node, fx.Node)
        return node

    def _dim_of_join(self, node: fx.Node) -> int:
        """The dimension of a join's channels: the second, or the last if only that keeps channels apart (channels-last)."""
        sources = [source for source in node.all_input_nodes if source in self.dependent]
        apart = {
            dim: sum(self.origins.origin(source, dim).players is not None for source in sources)
            for dim in (CHANNEL_DIM, -1)
        }
        return -1 if apart[-1] > apart[CHANNEL_DIM] else CHANNEL_DIM

    def _widened(self, operand: Operand, channels: int) -> Operand:
        """The operand with a single channel broadcast to all."""
        return Operand(operand.node, operand.dim, broadcast_origin(operand.origin, channels))

    def _add_site(self, node: fx.Node, kind: str, dim: int, classes: bool = False) -> Site:
        value, reading = self.values[node], node
        dim %= value.dim()
        while kind != IMAGE and len(reading.users) == 1:
            reader = next(iter(reading.users))
            if reader.op != "call_module" or not keeps_apart(self.modules[str(reader.target)], dim):
                break
            reading = reader
        name = self._free_name(_site_name(node, kind))
        site = Site(name, kind, node, reading, value.shape[dim], dim, classes)
        self.origins.add(site)
        return site

    def _free_name(self, name: str) -> str:
        count, free = 1, name
        while free in self.origins.sites:
            count += 1
            free = f"{name}, call {count}"
        return free

    def _operand(self, node: fx.Node, dim: int) -> Operand:
        return Operand(node, dim % self.values[node].dim(), self.origins.origin(node, dim))

    def _reaching_output(self) -> list[fx.Node]:
        """The nodes between image and output, in order, not counting those that pass a shape alone."""
        needed = needed_for([output_node(self.view)], stop=is_shape)
        return [node for node in self.view.graph.nodes if node in needed and node in self.dependent]


def _site_name(node: fx.Node, kind: str) -> str:
    """A layer's name, or for a join the name of the block that it ends."""
    if kind in (CONVOLUTION, LINEAR):
        return str(node.target)
    if kind == IMAGE:
        return IMAGE
    scopes: dict[str, Any] = node.meta.get("nn_module_stack", {})
    blocks = [path for path, _ in scopes.values() if path]
    return f"{blocks[-1]}.{kind}" if blocks else kind
