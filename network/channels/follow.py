"""Coupled channels: what must be cut together.

torch-pruning's ``DependencyGraph`` says how channels hang together. Secateur walks the graph itself (bounded, which
torch-pruning's own walk is not), merges what grouped layers tie together, and then tries every group: a group whose removal
does not equal masking it is locked, with the reason.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...common.errors import InputError
from ..graph.leaf_modules import ZeroPadChannels
from ..graph.trace import trace
from ..hooks import pick_logits
from .branches import find_branches
from .group import ChannelGroup, Member, Side
from .locks import HEAD_LOCK, difference, lock_overlaps, lock_shared_weights, try_out
from .zero_pad import PAD_PRUNER, followable

STEP_LIMIT = 2_000_000
"""Channel steps that following one layer's channels may take; attention over windows takes more than can be waited for."""


def find_groups(module: nn.Module, example: Tensor) -> tuple[ChannelGroup, ...]:
    """All groups of coupled channels of a network, in network order, the tried-out locks included.

    Args:
        module: the network; it is not changed.
        example: input of the network's shape, ``[n, C, H, W]``.

    Raises:
        InputError: torch-pruning cannot follow the network; the layer is named.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> groups = secateur.find_groups(network.module, network.example())
        >>> [(group.name, group.units) for group in groups][:2]
        [('stem.0', 32), ('block1.conv1', 32)]
        >>> [member.layer for member in groups[0].producers]  # a residual stream: cut together
        ['stem.0', 'block1.conv2']
        >>> groups[-1].locked
        'its units are the classes of the head.'
    """
    plain = followable(module, example[:1])
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
    groups = lock_shared_weights(lock_overlaps(groups), plain)
    return _mark_branches(plain, try_out(plain, groups, example), example)


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
    except Exception as error:  # torch-pruning fails in many ways on what it cannot follow
        place = _nearest_layer(error, module)
        raise InputError(
            f"torch-pruning cannot follow this network's channels{place} ({type(error).__name__}: {error}). "
            "Channel shuffles and reshapes between channels and places are not supported."
        ) from error
    return graph


def _nearest_layer(error: Exception, module: nn.Module) -> str:
    """The named layer nearest to the node that torch-pruning stumbled over, read from the traceback."""
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
    """Walk the dependency graph from a layer's outputs, remembering for every channel met the root channel it goes with."""
    index = torch_pruning._helpers._HybridIndex
    pruner = graph.get_pruner_of_module(layer)
    root, name = graph.module2node[layer], names[layer]
    width = pruner.get_out_channels(layer)
    start = [index(idx=channel, root_idx=channel) for channel in range(width)]
    met: dict[tuple[Any, Side], set[tuple[int, int]]] = defaultdict(set)
    order: list[tuple[Any, Side]] = [(root, "out")]
    met[root, "out"].update((channel, channel) for channel in range(width))
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
            key = (dependency.target, _side(graph, dependency))
            fresh = [pair for pair in mapped if (pair.idx, pair.root_idx) not in met[key]]
            if not fresh:
                continue
            if key not in order:
                order.append(key)
            met[key].update((pair.idx, pair.root_idx) for pair in fresh)
            pending.append((dependency.target, dependency.handler, fresh))
    group = _group(graph, name, width, [(key, met[key]) for key in order], names, locked)
    return replace(group, stream=any(_is_join(node) for node, _ in order))


def _is_join(node: Any) -> bool:
    """Whether a node of the graph is a sum of two branches."""
    kind = node.grad_fn.name() if hasattr(node.grad_fn, "name") else ""
    return kind.startswith("AddBackward") and len({id(source) for source in node.inputs}) > 1


def _side(graph: Any, dependency: Any) -> Side:
    module = dependency.target.module
    pruner = graph.get_pruner_of_module(module)
    same = pruner.prune_in_channels == pruner.prune_out_channels
    return "in" if not same and dependency.handler == pruner.prune_in_channels else "out"


def _group(
    graph: Any,
    name: str,
    width: int,
    met: list[tuple[tuple[Any, Side], set[tuple[int, int]]]],
    names: Mapping[Any, str],
    locked: str,
) -> ChannelGroup:
    """Merge root channels into units where a layer ties them together, and list each layer's channels by unit."""
    parent = list(range(width))

    def find(channel: int) -> int:
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel

    def join(channels: Iterable[int]) -> None:
        first, *others = channels
        for other in others:
            low, high = sorted((find(first), find(other)))
            parent[high] = low

    layers = [
        (node, side, pairs)
        for (node, side), pairs in met
        if node.module in names and _width(graph, node, side) is not None
    ]
    for node, side, pairs in layers:
        by_channel: dict[int, list[int]] = defaultdict(list)
        for channel, root in pairs:
            by_channel[channel].append(root)
        for roots in by_channel.values():
            join(roots)
        module = node.module
        shares = _tied_groups(module)
        if shares > 1:
            total = _width(graph, node, side) or 0
            if total % shares or len(by_channel) != total:
                locked = locked or f"{names[module]} ties only a part of its channels to others."
            else:
                places: dict[int, list[int]] = defaultdict(list)
                for channel, roots in by_channel.items():
                    places[channel % (total // shares)].append(roots[0])
                for roots in places.values():
                    join(roots)
        if isinstance(module, nn.MultiheadAttention | nn.LSTM | nn.Embedding):
            locked = locked or f"its channels pass through {names[module]} ({type(module).__name__})."
        if (
            isinstance(module, _ConvNd)
            and module.groups > 1
            and module.in_channels == module.groups != module.out_channels
        ):
            locked = locked or f"{names[module]} is a depthwise convolution with several outputs per input."
    unit_of = {root: unit for unit, root in enumerate(sorted({find(channel) for channel in range(width)}))}
    members = []
    for node, side, pairs in layers:
        channels: list[set[int]] = [set() for _ in unit_of]
        for channel, root in pairs:
            channels[unit_of[find(root)]].add(channel)
        if any(not part for part in channels) and names[node.module] == name:
            locked = locked or "not every unit has channels."
        members.append(
            Member(
                names[node.module],
                side,
                _kind(node.module),
                _width(graph, node, side) or 0,
                tuple(tuple(sorted(part)) for part in channels),
            )
        )
    if len(unit_of) < 2:
        locked = locked or "it has a single unit."
    return ChannelGroup(name, tuple(members), locked)


def _tied_groups(module: nn.Module) -> int:
    """Into how many equal parts a layer divides its channels, each of which must lose the same places."""
    if isinstance(module, _ConvNd) and module.groups > 1 and not _is_depthwise(module):
        return module.groups
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        return module.num_groups
    return 1


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.out_channels > 1


def _kind(module: Any) -> str:
    if isinstance(module, nn.Parameter):
        return "parameter"
    if _is_depthwise(module):
        return "depthwise"
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _BatchNorm | nn.modules.instancenorm._InstanceNorm):
        return "norm"
    if isinstance(module, nn.LayerNorm | nn.GroupNorm):
        return "mixing_norm"
    return "pad" if isinstance(module, ZeroPadChannels) else "other"


def _width(graph: Any, node: Any, side: Side) -> int | None:
    """A layer's channels on a side; None for one without channels of its own (a PReLU with a single slope)."""
    if isinstance(node.module, nn.Parameter):
        return int(node.module.shape[node.pruning_dim])
    pruner = graph.get_pruner_of_module(node.module)
    width = (pruner.get_out_channels if side == "out" else pruner.get_in_channels)(node.module)
    return None if width is None else int(width)


def _mark_branches(module: nn.Module, groups: tuple[ChannelGroup, ...], example: Tensor) -> tuple[ChannelGroup, ...]:
    """Note which groups lie in branches that may go whole: tried out, as the groups were."""
    try:
        view = trace(module, example)
    except InputError:
        return groups
    marked = {group.name: group for group in groups}
    branches = find_branches(view, groups)
    pending = [branches] if branches else []
    while pending:
        current = pending.pop()
        inside = [replace(marked[name], branch=branch.last) for branch in current for name in branch.groups]
        if not difference(module, inside, example, compare=True, whole=True):
            marked.update({group.name: group for group in inside})
        elif len(current) > 1:
            half = len(current) // 2
            pending += [current[half:], current[:half]]
    return tuple(marked[group.name] for group in groups)
