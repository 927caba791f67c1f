"""Where a network's stages end: the last feature map of each resolution that lies on every path to the output."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ...common.errors import InputError
from .execution import image_dependent, is_image_map, run_graph
from .trace import BLOCKS

SAME_STAGE = (
    0.6  # of the first map's positions: convolutions without padding shrink it a little, strides halve both sides
)


@dataclass(frozen=True)
class FeaturePoint:
    """A node of a traced network that gives a feature map: the name for users, the node, ``[C, H, W]``."""

    name: str
    node: fx.Node
    channels: int
    height: int
    width: int


def find_stages(
    view: fx.GraphModule, example: torch.Tensor, before: Collection[fx.Node] = ()
) -> tuple[FeaturePoint, ...]:
    """The ends of the stages in network order: the last map of each resolution that lies on every path to the output.

    Maps with at least ``SAME_STAGE`` of the positions of a stage's first map belong to the stage. A resolution without a
    convolution of its own (a pool before the head) is not a stage. In torchvision's VGG these are the layers
    before the pools, in its ResNets the stem and layer1 to layer4 (Cheng et al. 2023, section 3.2).

    Args:
        before: stop at the first of these nodes.

    Raises:
        InputError: no feature map lies on every path to the output.
    """
    maps = _maps(view, example)
    modules = dict(view.named_modules())
    passed = set(passed_by_everything(view))
    stages: list[FeaturePoint] = []
    first = last = None  # of the current stage
    convolved = since_last = False  # whether there was a convolution in the stage; and after ``last``
    for node in view.graph.nodes:
        if node in before:
            break
        since_last = since_last or _is_convolution(modules, node)
        if node not in passed or node not in maps or node.op == "placeholder":
            continue
        if first is not None and _area(maps[node]) > _area(maps[first]):
            continue  # the axes were swapped, or it grew again
        if first is None or last is None:
            first, convolved = node, since_last
        elif _area(maps[node]) < SAME_STAGE * _area(maps[first]):
            stages += [feature_point(view, last, maps[last])] if convolved else []
            first, convolved = node, since_last
        convolved, since_last, last = convolved or since_last, False, node
    if last is not None and convolved:
        stages.append(feature_point(view, last, maps[last]))
    if not stages:
        raise InputError(
            "No feature map of this network lies on every path to its output, so it has no stages. Name layers with --layers."
        )
    return tuple(_distinct(stages))


def named_points(view: fx.GraphModule, example: torch.Tensor, names: Sequence[str]) -> tuple[FeaturePoint, ...]:
    """The feature maps that the named layers and blocks give, in network order.

    Raises:
        InputError: there is no such module, or it gives no feature map.
    """
    maps = _maps(view, example)
    order = {node: index for index, node in enumerate(view.graph.nodes)}
    points = []
    for name in names:
        end = view.meta.get(BLOCKS, {}).get(name, name)
        nodes = [node for node in view.graph.nodes if name in (str(node.target), *_scopes(node))]
        nodes = nodes or [node for node in view.graph.nodes if str(node.target) == end]
        if not nodes:
            known = sorted({str(node.target) for node in maps if node.op == "call_module"})
            raise InputError(f"The network has no layer {name!r}. Among its layers are: {', '.join(known[:40])}.")
        if nodes[-1] not in maps:
            raise InputError(
                f"{name} gives no feature map of channels x height x width. Name a convolution or a block."
            )
        points.append(FeaturePoint(name, nodes[-1], *maps[nodes[-1]]))
    if len({point.node for point in points}) != len(points):
        raise InputError(f"Two of the layers {', '.join(names)} give the same feature map. Name each once.")
    return tuple(sorted(points, key=lambda point: order[point.node]))


def _distinct(stages: Sequence[FeaturePoint]) -> list[FeaturePoint]:
    """The stages with distinct names, where one module ends several of them."""
    seen: dict[str, int] = {}
    named = []
    for point in stages:
        seen[point.name] = count = seen.get(point.name, 0) + 1
        named.append(point if count == 1 else replace(point, name=f"{point.name}, call {count}"))
    return named


def _maps(view: fx.GraphModule, example: torch.Tensor) -> dict[fx.Node, tuple[int, int, int]]:
    with torch.no_grad():
        values = run_graph(view, example, [node for node in view.graph.nodes if node.op != "output"])
    return {node: tuple(value.shape[1:]) for node, value in values.items() if is_image_map(value)}


def passed_by_everything(view: fx.GraphModule) -> list[fx.Node]:
    """The nodes on every path from the input to the output, in order (the dominators of the output)."""
    order = {node: index for index, node in enumerate(view.graph.nodes)}
    flows = image_dependent(view)  # a shape alone carries no image content
    passed: list[fx.Node] = []
    reach = -1
    for node, place in order.items():
        if node not in flows:
            continue
        if reach <= place:  # nothing before it is read after it
            passed.append(node)
        reach = max([reach, *(order[reader] for reader in node.users if reader in flows)])
    return passed


def feature_point(view: fx.GraphModule, node: fx.Node, shape: tuple[int, int, int]) -> FeaturePoint:
    """The feature point of a node, named after the outermost block that ends with it, else after its own module."""
    for scope in _scopes(node):
        if scope == str(node.target):
            break  # its own module: prefer a block that it ended when the network was first traced
        if [other for other in view.graph.nodes if scope in _scopes(other)][-1] is node:
            return FeaturePoint(scope, node, *shape)
    for block, end in view.meta.get(BLOCKS, {}).items():  # of a network that was traced before
        if node.op == "call_module" and end == str(node.target):
            return FeaturePoint(block, node, *shape)
    return FeaturePoint(str(node.target) if node.op == "call_module" else node.name, node, *shape)


def _area(shape: tuple[int, int, int]) -> int:
    return shape[1] * shape[2]


def _scopes(node: fx.Node) -> list[str]:
    """The modules whose forward the node is part of, the outermost first."""
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]


def _is_convolution(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], _ConvNd)
