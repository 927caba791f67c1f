"""Coupled channels: what must be cut together, and the cut itself.

torch-pruning's ``DependencyGraph`` says how channels hang together; its per-layer functions take them out. Secateur walks
the graph itself (bounded, which torch-pruning's own walk is not), merges what grouped layers tie together, and then tries
every group: a group whose removal does not equal masking it is locked, with the reason.
"""

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch_pruning import ops
from torch_pruning.pruner.function import PrunerBox

from ..errors import InputError
from .branches import find_branches
from .probe import masking_inputs, pick_logits
from .stand_ins import Constant, Subsample
from .trace import ZeroPadChannels, has_channel_padding, trace

Side = Literal["out", "in"]
HEAD_LOCK = "its units are the classes of the head."
STEP_LIMIT = 2_000_000
"""Channel steps that following one layer's channels may take; attention over windows takes more than can be waited for."""


@dataclass(frozen=True)
class Member:
    """One layer's part in a group: for every unit of the group, the channels of the layer that go with it.

    ``side`` is "out" for what a layer makes (a norm's channels too), "in" for what it reads. ``kind``: conv, depthwise,
    linear, norm, mixing_norm (normalises across channels), pad, parameter or other. ``width`` is the layer's own count.
    """

    layer: str
    side: Side
    kind: str
    width: int
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """All units of one coupling, named after the first layer that makes its channels.

    A unit is what must be removed together. ``locked`` says why none may go; it is empty where units may. ``stream``: the
    channels pass through a sum of branches, as a residual stream does, so that many layers write and read each unit.
    ``branch`` names the last layer of the residual branch that the group lies in, if that may go whole: all groups of one
    branch may lose all their units together, and the last layer then gives a constant.
    """

    name: str
    members: tuple[Member, ...]
    locked: str = ""
    stream: bool = False
    branch: str = ""

    @property
    def ends_branch(self) -> bool:
        """Whether the last layer of the group's branch reads the group's own units."""
        return any(member.layer == self.branch for member in self.consumers)

    @property
    def units(self) -> int:
        return len(self.members[0].channels)

    @property
    def producers(self) -> tuple[Member, ...]:
        """The layers whose kernels the units are."""
        return tuple(m for m in self.members if m.side == "out" and m.kind in ("conv", "depthwise", "linear"))

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The layers that read the units."""
        return tuple(m for m in self.members if m.side == "in")


@dataclass(frozen=True)
class LayerCut:
    """Channels that leave one layer, and the widths that the layer had before. For a parameter, "out" is its dimension."""

    out_removed: tuple[int, ...] = ()
    in_removed: tuple[int, ...] = ()
    out_width: int | None = None
    in_width: int | None = None


Cut = Mapping[str, LayerCut]


def find_groups(module: nn.Module, example: Tensor) -> tuple[ChannelGroup, ...]:
    """All groups of coupled channels of a network, in network order, the tried-out locks included.

    Args:
        module: the network; it is not changed.
        example: input of the network's shape, ``[n, C, H, W]``.

    Raises:
        InputError: torch-pruning cannot follow the network; the layer is named.
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
    groups = _lock_shared_weights(_lock_overlaps(groups), plain)
    return _mark_branches(plain, _try_out(plain, groups, example), example)


def cut_of(groups: Iterable[ChannelGroup], removed: Mapping[str, Iterable[int]]) -> dict[str, LayerCut]:
    """The channels that leave each layer when units (by group name) are removed.

    Raises:
        InputError: an unknown group, a locked one, a unit that does not exist, or all units of a group without those of the
            whole branch.
    """
    groups = tuple(groups)
    by_name = {group.name: group for group in groups}
    outs: dict[str, set[int]] = defaultdict(set)
    ins: dict[str, set[int]] = defaultdict(set)
    widths: dict[tuple[str, Side], int] = {}
    for name, units in removed.items():
        units = sorted(set(units))
        if not units:
            continue
        group = by_name.get(name)
        if group is None:
            raise InputError(f"The plan names the group {name!r}, which this network does not have.")
        if group.locked:
            raise InputError(f"{name} cannot be cut: {group.locked}")
        if units[0] < 0 or units[-1] >= group.units:
            raise InputError(f"{name} has units 0 to {group.units - 1}; the plan removes {units[-1]}.")
        if len(units) == group.units and not group.branch:
            raise InputError(f"The plan removes all {group.units} units of {name}; at least one must stay.")
        if len(units) == group.units:
            left = [g.name for g in groups if g.branch == group.branch and len(set(removed.get(g.name, ()))) < g.units]
            if left:
                raise InputError(
                    f"The plan removes all {group.units} units of {name}, so the whole branch up to {group.branch} must go: "
                    f"remove all units of {', '.join(left)} too, or leave one here."
                )
        for member in group.members:
            target = outs if member.side == "out" else ins
            target[member.layer].update(channel for unit in units for channel in member.channels[unit])
            widths[member.layer, member.side] = member.width
    return {
        layer: LayerCut(
            tuple(sorted(outs.get(layer, ()))),
            tuple(sorted(ins.get(layer, ()))),
            widths.get((layer, "out")),
            widths.get((layer, "in")),
        )
        for layer in dict.fromkeys([*outs, *ins])
    }


def apply_cut(module: nn.Module, cut: Cut, example: Tensor) -> nn.Module:
    """A copy of ``module`` without the channels in ``cut``. The original is untouched.

    Works on the network the cut was planned for or on a fresh one of the same architecture.

    Raises:
        InputError: a layer is missing or has another width than the cut was planned for.
    """
    result = followable(module, example)
    modules, parameters = dict(result.named_modules()), dict(result.named_parameters())
    with torch.no_grad():
        for name, part in cut.items():
            if name in modules:
                _cut_layer(result, name, modules[name], part)
            elif name in parameters:
                _cut_parameter(result, name, part)
            else:
                raise InputError(
                    f"The plan cuts {name!r}, which this network does not have. Is it another model's plan?"
                )
    return result.train(module.training)


def rest_of_cut(whole: Cut, done: Cut) -> dict[str, LayerCut]:
    """What is left to cut of ``whole`` in a network from which ``done``, a part of it, is gone: channels count what is left."""
    rest = {}
    for name, part in whole.items():
        before = done.get(name, LayerCut())
        sides = []
        for removed, gone, width in (
            (part.out_removed, before.out_removed, part.out_width),
            (part.in_removed, before.in_removed, part.in_width),
        ):
            lost = set(gone)
            left = [channel for channel in range(width or 0) if channel not in lost]
            wanted = set(removed) - lost
            sides.append(
                (tuple(index for index, channel in enumerate(left) if channel in wanted), len(left) if width else None)
            )
        (outs, out_width), (ins, in_width) = sides
        if outs or ins:
            rest[name] = LayerCut(outs, ins, out_width, in_width)
    return rest


def cut_to_json(cut: Cut) -> dict[str, Any]:
    """Plain values of a cut, for ``plan.json``."""
    return {
        name: {
            "out_width": part.out_width,
            "out_removed": list(part.out_removed),
            "in_width": part.in_width,
            "in_removed": list(part.in_removed),
        }
        for name, part in cut.items()
    }


def cut_from_json(values: Mapping[str, Any]) -> dict[str, LayerCut]:
    """The inverse of :func:`cut_to_json`."""
    return {
        name: LayerCut(
            tuple(part["out_removed"]), tuple(part["in_removed"]), part.get("out_width"), part.get("in_width")
        )
        for name, part in values.items()
    }


def followable(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy that torch-pruning can follow: zero-padded channels as modules, all parameters differentiable.

    The layer names in groups and cuts are this copy's; they are the network's own but for the padding modules.
    """
    result = copy.deepcopy(module).eval()
    if not any(isinstance(child, ZeroPadChannels) for child in result.modules()):
        try:
            traced = trace(result, example)
        except InputError:
            traced = (
                None  # torch-pruning follows autograd, not torch.fx: padding is then met, and locked, by trying out
            )
        if traced is not None and has_channel_padding(traced):
            result = traced.eval()
            with torch.no_grad():
                result(example)
    return result.requires_grad_(True)


class _PadPruner(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """How torch-pruning takes channels out of :class:`ZeroPadChannels`: a layer with inputs and outputs of its own."""

    TARGET_MODULES = ZeroPadChannels

    def prune_out_channels(self, layer: ZeroPadChannels, idxs: Sequence[int]) -> nn.Module:
        layer.drop_outputs(list(idxs))
        return layer

    def prune_in_channels(self, layer: ZeroPadChannels, idxs: Sequence[int]) -> nn.Module:
        layer.drop_inputs(list(idxs))
        return layer

    def get_out_channels(self, layer: ZeroPadChannels) -> int:
        return layer.out_channels

    def get_in_channels(self, layer: ZeroPadChannels) -> int:
        return layer.in_channels


PAD_PRUNER = _PadPruner()


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


def _lock_overlaps(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Channels that belong to two groups cannot be cut by either alone."""
    owner: dict[tuple[str, Side, int], str] = {}
    clash: dict[str, str] = {}
    for group in groups:
        for member in group.members:
            for channel in {channel for unit in member.channels for channel in unit}:
                other = owner.setdefault((member.layer, member.side, channel), group.name)
                if other != group.name:
                    clash[group.name], clash[other] = other, group.name
    return [
        replace(group, locked=group.locked or f"its channels overlap with those of {clash[group.name]}.")
        if group.name in clash
        else group
        for group in groups
    ]


def _lock_shared_weights(groups: list[ChannelGroup], module: nn.Module) -> list[ChannelGroup]:
    """Layers that share a parameter cannot be cut by the group of either."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, child in module.named_modules():
        for parameter in child.parameters(recurse=False):
            owners[id(parameter)].append(name)
    shared = {name: names for names in owners.values() if len(names) > 1 for name in names}
    result = []
    for group in groups:
        tied = next((member.layer for member in group.members if member.layer in shared), None)
        reason = f"{' and '.join(shared[tied])} share their weights." if tied else ""
        result.append(replace(group, locked=group.locked or reason))
    return result


def _try_out(module: nn.Module, groups: list[ChannelGroup], example: Tensor) -> tuple[ChannelGroup, ...]:
    """Lock every group whose removal breaks the network or differs from masking what it gives its readers."""
    reasons: dict[str, str] = {}
    open_groups = [group for group in groups if not group.locked]
    exact = [group for group in open_groups if all(member.kind != "mixing_norm" for member in group.members)]
    mixing = [group for group in open_groups if group not in exact]
    for part, compare in ((exact, True), (mixing, False)):
        pending = [part] if part else []
        while pending:
            current = pending.pop()
            reason = _difference(module, current, example, compare)
            if reason and len(current) == 1:
                reasons[current[0].name] = reason
            elif reason:
                half = len(current) // 2
                pending += [current[half:], current[:half]]
    return tuple(replace(group, locked=reasons.get(group.name, group.locked)) for group in groups)


def _difference(
    module: nn.Module, groups: Sequence[ChannelGroup], example: Tensor, compare: bool, whole: bool = False
) -> str:
    """Cut every second unit of the groups, or the ``whole`` of them; say what went wrong, or nothing."""
    removed = {group.name: range(group.units) if whole else range(0, group.units - 1, 2) for group in groups}
    try:
        small = apply_cut(module, cut_of(groups, removed), example)
        with torch.no_grad():
            got = pick_logits(small(example))
            pick_logits(small.train()(torch.cat([example, example])))
    except InputError:
        return "its channels are split or rearranged on the way."
    except Exception as error:  # a wrongly followed network fails anywhere in its forward
        return f"without some of its units the network fails ({(str(error).splitlines() or [''])[0][:160]})."
    with torch.no_grad():
        unchanged = pick_logits(module(example))
        if got.shape != unchanged.shape:
            return "cutting it changes the number of classes."
        if not compare:
            return ""
        masks: dict[str, set[int]] = defaultdict(set)
        for group in groups:
            for member in group.consumers:
                masks[member.layer].update(c for unit in removed[group.name] for c in member.channels[unit])
        with masking_inputs(module, {name: torch.tensor(sorted(channels)) for name, channels in masks.items()}):
            masked = pick_logits(module(example))
    scale = max(float((masked - unchanged).abs().max()), 5e-3 * float(unchanged.abs().max()))
    if float((got - masked).abs().max()) > 2e-3 * scale:
        return "cutting its units is not the same as leaving them out; channels are mixed on the way."
    return ""


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
        if not _difference(module, inside, example, compare=True, whole=True):
            marked.update({group.name: group for group in inside})
        elif len(current) > 1:
            half = len(current) // 2
            pending += [current[half:], current[:half]]
    return tuple(marked[group.name] for group in groups)


def _cut_layer(root: nn.Module, name: str, module: nn.Module, part: LayerCut) -> None:
    if isinstance(module, Subsample):  # nothing of it is left to cut
        return
    if isinstance(module, Constant):
        _check_width(name, len(module.bias), part.out_width, part.out_removed)
        kept = [channel for channel in range(len(module.bias)) if channel not in set(part.out_removed)]
        module.bias = nn.Parameter(module.bias[kept])
        return
    stride: Any = module.stride if isinstance(module, nn.Conv2d) else (1, 1)
    if part.out_width is not None and len(part.out_removed) == part.out_width:
        root.set_submodule(name, Subsample(stride))
        return
    if isinstance(module, nn.Conv2d) and part.in_width is not None and len(part.in_removed) == part.in_width:
        kept = [channel for channel in range(module.out_channels) if channel not in set(part.out_removed)]
        bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
        root.set_submodule(name, Constant(bias[kept], stride))
        return
    pruner: Any = PAD_PRUNER if isinstance(module, ZeroPadChannels) else PrunerBox[ops.module2type(module)]
    for removed, planned, width, prune in (
        (part.out_removed, part.out_width, pruner.get_out_channels(module), pruner.prune_out_channels),
        (part.in_removed, part.in_width, pruner.get_in_channels(module), pruner.prune_in_channels),
    ):
        if not removed:
            continue
        _check_width(name, width, planned, removed)
        pruner.pruning_dim = -1
        prune(module, list(removed))


def _check_width(name: str, width: int, planned: int | None, removed: Sequence[int]) -> None:
    if planned != width or (removed and removed[-1] >= width):
        raise InputError(
            f"{name} has {width} channels, the plan was made for {planned}. Is it another model's plan, or has it been "
            "cut already?"
        )


def _cut_parameter(root: nn.Module, name: str, part: LayerCut) -> None:
    holder_name, _, leaf = name.rpartition(".")
    holder = root.get_submodule(holder_name)
    parameter = cast(nn.Parameter, getattr(holder, leaf))
    dims = [dim for dim, size in enumerate(parameter.shape) if size > 1]
    if not dims or parameter.shape[dims[-1]] != part.out_width:
        raise InputError(
            f"The parameter {name} has shape {tuple(parameter.shape)}; the plan was made for {part.out_width}."
        )
    kept = [index for index in range(parameter.shape[dims[-1]]) if index not in set(part.out_removed)]
    setattr(holder, leaf, nn.Parameter(parameter.index_select(dims[-1], torch.tensor(kept))))
