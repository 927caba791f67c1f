"""Every kind of network that people bring: rewritten with equal outputs, opened, and cut as if its channels were masked."""

import contextlib

import pytest
import torch
from torch import nn

import zoo_kinds
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.hooks import pick_logits
from secateur.network.rewrites.plain import make_plain

HEAD = "its units are the classes of the head."
ON_LOADING = {"weight_norm", "spectral_norm", "old_weight_norm", "old_spectral_norm", "lazy_layers"}
"""Made plain when they are loaded: ``network/loading``."""
LOCKED = {
    "non_local": {"middle.theta": "mixed on the way"},  # a product reads its channels, which no layer's mask shows
    "channel_shuffle": {"middle.first.0": "single unit"},  # grouped on both sides of the shuffle
    "cbam": {"middle.first.0": "max", "middle.places": "single unit"},
    "eca": {"middle.first.0": "mixes its channels as places"},
    "two_heads": {"other": "beside the classes"},
    "other_head_first": {"head": "beside the classes"},
    "logits_and_features": {"tail.0": "beside the classes"},
    "features_and_logits": {"head": "beside the classes"},
    "named_outputs": {"head": "beside the classes"},
    "auxiliary_returned": {"auxiliary": "beside the classes"},
    "tied_weights": dict.fromkeys(("middle.first.0", "middle.shared.0", "middle.twin"), "share their weights"),
}
"""Groups that must stay, with a part of the reason; all others are open."""
KINDS = sorted(set(zoo_kinds.KINDS) - ON_LOADING - {"dropout_always", "scales_by_a_value"})
"""Without those that are refused on loading, and one whose forward turns a value into a number, which nothing can follow."""


@contextlib.contextmanager
def without(module, groups, removed):
    """The network with the channels of removed units at zero where they are read."""
    handles = []
    for group in groups:
        for member in (member for member in group.members if member.side == "in" and group.name in removed):
            layer = module.get_submodule(member.layer)
            dim = -1 if isinstance(layer, nn.Linear) else getattr(layer, "dim", 1)
            channels = torch.tensor(
                [c for unit in removed[group.name] for c in member.channels[unit]], dtype=torch.long
            )

            def zero(_layer, inputs, channels=channels, dim=dim):
                return (inputs[0].index_fill(dim, channels, 0), *inputs[1:])

            handles.append(layer.register_forward_pre_hook(zero))
    yield module
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", KINDS)
def test_it_is_rewritten_opened_and_cut_as_if_masked(name, random_units):
    module = zoo_kinds.build(name)
    images = torch.randn(3, *zoo_kinds.INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    plain = make_plain(module, images[:1]).module
    with torch.no_grad():
        for count in (1, 3):
            torch.testing.assert_close(pick_logits(plain(images[:count])), pick_logits(module(images[:count])))
    groups = find_groups(module, images[:2])
    locked = {group.name: group.locked for group in groups if group.locked and group.locked != HEAD}
    expected = LOCKED.get(name, {})
    assert set(locked) == set(expected)
    assert all(part in locked[group] for group, part in expected.items())
    mixing = {group.name for group in groups if any(member.kind == "mixing_norm" for member in group.members)}
    removed = {group: units for group, units in random_units(groups).items() if group not in mixing}
    assert removed or mixing
    small = apply_cut(module, cut_of(groups, removed), images[:1]).eval()
    with torch.no_grad(), without(plain, groups, removed):
        torch.testing.assert_close(pick_logits(small(images)), pick_logits(plain(images)), rtol=1e-4, atol=1e-5)
