"""Lock the groups that must stay whole: test each, and give the reason."""

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...common.errors import InputError, first_line
from ..hooks import masking_inputs, masking_outputs, pick_logits
from .cut import apply_cut, cut_of
from .group import ChannelGroup, Side


def lock_overlaps(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Lock groups that share channels: neither can be cut alone."""
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


def lock_shared_weights(groups: list[ChannelGroup], module: nn.Module) -> list[ChannelGroup]:
    """Lock groups with layers that share a parameter."""
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


def try_out(module: nn.Module, groups: list[ChannelGroup], example: Tensor) -> tuple[ChannelGroup, ...]:
    """Lock every group whose removal breaks the network or differs from masking its units where they are read."""
    reasons: dict[str, str] = {}
    open_groups = [group for group in groups if not group.locked]
    exact = [group for group in open_groups if all(member.kind != "mixing_norm" for member in group.members)]
    mixing = [group for group in open_groups if group not in exact]
    for part, compare in ((exact, True), (mixing, False)):
        pending = [part] if part else []
        while pending:
            current = pending.pop()
            reason = difference(module, current, example, compare)
            if reason and len(current) == 1:
                reasons[current[0].name] = reason
            elif reason:
                half = len(current) // 2
                pending += [current[half:], current[:half]]
    return tuple(replace(group, locked=reasons.get(group.name, group.locked)) for group in groups)


def difference(
    module: nn.Module, groups: Sequence[ChannelGroup], example: Tensor, compare: bool, whole: bool = False
) -> str:
    """Cut every second unit of the groups, or all of them if ``whole``; what went wrong, or an empty string."""
    removed = {group.name: range(group.units) if whole else range(0, group.units - 1, 2) for group in groups}
    try:
        small = apply_cut(module, cut_of(groups, removed), example)
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints where a graph fails
            got = pick_logits(small(example))
            pick_logits(small.train()(torch.cat([example, example])))
    except InputError:
        return "its channels are split or rearranged on the way."
    except Exception as error:  # a network that was followed wrongly may fail anywhere
        return f"without some of its units the network fails ({first_line(error)[:160]})."
    with torch.no_grad():
        unchanged = pick_logits(module(example))
        if got.shape != unchanged.shape:
            return "cutting it changes the number of classes."
        if not compare:
            return ""
        masks: dict[str, set[int]] = defaultdict(set)
        modules = dict(module.named_modules())
        for group in groups:
            for member in group.consumers:
                masks[member.layer].update(c for unit in removed[group.name] for c in member.channels[unit])
        makers: dict[str, set[int]] = defaultdict(set)  # queries and keys: a product reads them, not a layer
        for group in (group for group in groups if not group.consumers):
            for member in (member for member in group.members if member.layer in modules):
                makers[member.layer].update(c for unit in removed[group.name] for c in member.channels[unit])
        with masking_inputs(module, _indices(masks)), masking_outputs(module, _indices(makers)):
            masked = pick_logits(module(example))
    scale = max(float((masked - unchanged).abs().max()), 5e-3 * float(unchanged.abs().max()))
    if float((got - masked).abs().max()) > 2e-3 * scale:
        return "cutting its units is not the same as leaving them out; channels are mixed on the way."
    return ""


def _indices(channels: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    return {name: torch.tensor(sorted(own)) for name, own in channels.items()}
