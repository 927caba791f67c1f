"""Groups of coupled channels by torch-pruning's ``DependencyGraph``, for networks that torch.fx cannot trace.

Secateur traverses the graph itself, because torch-pruning's own traversal has no limit, and merges the channels that grouped
layers tie together.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...common.errors import InputError
from ..graph.leaf_modules import ZeroPadChannels
from ..hooks import pick_logits
from ..provenance.parts import HEAD_LOCK
from .group import ChannelGroup, Side
from .units import Reached, group_of
from .zero_pad import PAD_PRUNER

STEP_LIMIT = 2_000_000
"""Limit on the channel steps of following one layer's channels; attention over windows would take hours."""


def follow_groups(plain: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """All groups of coupled channels of a network by torch-pruning's dependency graph, not yet tested.

    Args:
        plain: a copy of the network in which all parameters require gradients.

    Raises:
        InputError: torch-pruning cannot follow the network; the message names the layer.
    """
    graph = _build_graph(plain, example[:1])
    names = {child: name for name, child in plain.named_modules()}
    names.update({parameter: name for name, parameter in plain.named_parameters()})
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    for layer in plain.modules():
        if not isinstance(layer, _ConvNd | nn.Linear) or names[layer] in seen or layer not in graph.module2node:
            continue
        group = _follow(graph, layer, names)
        seen.update(member.layer for member in group.producers)
        groups.append(group)
    return groups


def _build_graph(module: nn.Module, example: Tensor) -> Any:
    graph = torch_pruning.DependencyGraph()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                module,
                example,
                verbose=False,
                customized_pruners={ZeroPadChannels: PAD_PRUNER},
                output_transform=pick_logits,
            )
    except Exception as error:  # torch-pruning fails with many errors on networks that it cannot follow
        place = _nearest_layer(error, module)
        raise InputError(
            f"torch-pruning cannot follow this network's channels{place} ({type(error).__name__}: {error}). "
            "Channel shuffles and reshapes between channels and positions are not supported."
        ) from error
    return graph


def _nearest_layer(error: Exception, module: nn.Module) -> str:
    """The named layer nearest to the node at which torch-pruning failed, read from the traceback."""
    names = {child: name for name, child in module.named_modules()}
    step = error.__traceback__
    node = None
    while step is not None:
        node = step.tb_frame.f_locals.get("node", node)
        step = step.tb_next
    pending, seen = [node] if node is not None else [], set()
    while pending:
        node = pending.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        name = names.get(getattr(node, "module", None), "")
        if name:
            return f" after layer {name!r}"
        pending += list(getattr(node, "inputs", []))
    return ""


def _follow(graph: Any, layer: nn.Module, names: Mapping[Any, str]) -> ChannelGroup:
    """Traverse the dependency graph from a layer's outputs, recording for every channel reached its root channel."""
    pruner = graph.get_pruner_of_module(layer)
    root, name, width = graph.module2node[layer], names[layer], pruner.get_out_channels(layer)
    index = torch_pruning._helpers._HybridIndex
    start = [index(idx=channel, root_idx=channel) for channel in range(width)]
    met: dict[tuple[Any, Side], set[tuple[int, int]]] = {
        (root, "out"): {(channel, channel) for channel in range(width)}
    }
    pending = [(root, pruner.prune_out_channels, start)]
    steps, locked = 0, ""
    while pending:
        node, function, channels = pending.pop()
        if not node.outputs and graph.is_out_channel_pruning_fn(function):
            locked = HEAD_LOCK
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(function):
                continue
            mapped = channels
            for mapping in dependency.index_mapping:
                if mapping is not None:
                    mapped = mapping(mapped)
            steps += len(mapped)
            if steps > STEP_LIMIT:
                raise InputError(
                    f"The channels of {name!r} could not be followed through the network (attention over windows?). "
                    "Secateur cuts convolutional networks."
                )
            known = met.get(key := (dependency.target, _side(graph, dependency)), set())
            fresh = [pair for pair in mapped if (pair.idx, pair.root_idx) not in known]
            if fresh:
                met.setdefault(key, set()).update((pair.idx, pair.root_idx) for pair in fresh)
                pending.append((dependency.target, dependency.handler, fresh))
    reached = [
        Reached(node.module, names[node.module], side, own_width, pairs)
        for (node, side), pairs in met.items()
        if node.module in names and (own_width := _width(graph, node, side)) is not None
    ]
    group = group_of(name, width, reached, locked)
    return replace(group, stream=any(_is_sum(node) for node, _ in met))


def _is_sum(node: Any) -> bool:
    """Whether a node of the graph is a sum of two branches."""
    kind = node.grad_fn.name() if hasattr(node.grad_fn, "name") else ""
    return kind.startswith("AddBackward") and len({id(source) for source in node.inputs}) > 1


def _side(graph: Any, dependency: Any) -> Side:
    module = dependency.target.module
    pruner = graph.get_pruner_of_module(module)
    same = pruner.prune_in_channels == pruner.prune_out_channels
    return "in" if not same and dependency.handler == pruner.prune_in_channels else "out"


def _width(graph: Any, node: Any, side: Side) -> int | None:
    """A layer's number of channels on a side; None if it has none of its own (a PReLU with a single slope)."""
    if isinstance(node.module, nn.Parameter):
        return int(node.module.shape[node.pruning_dim])
    pruner = graph.get_pruner_of_module(node.module)
    width = (pruner.get_out_channels if side == "out" else pruner.get_in_channels)(node.module)
    return None if width is None else int(width)
