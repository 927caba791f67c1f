"""Every kind of network that people bring: rewritten with equal outputs, opened, and cut as if its channels were masked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from masking import without
from torch import nn

import zoo_kinds
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.hooks import pick_logits
from secateur.network.load import load_model
from secateur.network.rewrites.plain import make_plain
from secateur.network.saved import load_network, save_network

HEAD = "its units are the classes of the head."
ON_LOADING = {"weight_norm", "spectral_norm", "old_weight_norm", "old_spectral_norm", "lazy_layers"}
"""Made plain when they are loaded: ``network/loading``."""
LOCKED = {
    "channel_shuffle": {"middle.first.0": "single unit"},  # grouped on both sides of the shuffle
    "cbam": {"middle.first.0": "max", "middle.places": "single unit"},
    "eca": {"middle.first.0": "mixes its channels as places"},
    "two_heads": {"other": "beside the classes"},
    "other_head_first": {"head": "beside the classes"},
    "features_and_logits": {"head": "beside the classes"},  # unless load_model finds the classes
    "auxiliary_returned": {"auxiliary": "beside the classes"},
    "tied_weights": dict.fromkeys(("middle.first.0", "middle.shared.0", "middle.twin"), "share their weights"),
}
"""Groups that must stay, with a part of the reason; all others are open."""
KINDS = sorted(set(zoo_kinds.KINDS) - ON_LOADING - {"dropout_always", "scales_by_a_value"})
"""Without those that are refused on loading, and one whose forward turns a value into a number, which nothing can follow."""


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


class Moody(nn.Module):
    """Decides on values, the same for most images."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        if x.abs().max() > self.limit:
            x = x / 2
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


def test_a_decision_on_values_on_which_images_agree_is_kept_and_named():
    torch.manual_seed(0)
    module, images = Moody(1e4).eval(), torch.randn(2, 3, 8, 8)
    plain = make_plain(module, images)
    assert plain.module is not module
    assert "x.abs().max() > self.limit" in plain.summary()[0]
    assert "is False" in plain.summary()[0]
    with torch.no_grad():
        assert torch.equal(plain.module(images), module(images))


def test_a_decision_on_which_images_disagree_leaves_the_network_as_it_is():
    torch.manual_seed(0)
    module = Moody(0.0).eval()
    module.limit = float(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2)).abs().max())
    assert make_plain(module, torch.zeros(1, 3, 8, 8)).module is module


class Batchwise(nn.Module):
    """Answers for several images otherwise than for one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        y = nn.functional.conv2d(x, self.weight).mean((2, 3))
        return y if len({x.shape[0], 2, 3}) == 2 else y + x.mean()


def test_a_network_whose_scores_would_change_stays_as_it_is_and_says_so():
    module = Batchwise().eval()
    plain = make_plain(module, torch.randn(1, 3, 8, 8))
    assert plain.module is module
    assert plain.notes == ()
    assert "stays as it is" in plain.summary()[0]


@pytest.mark.parametrize("name", ["same_padding_static", "c2f", "multihead_attention", "frozen_batch_norm"])
def test_a_saved_network_loads_with_the_users_factory(name, tmp_path):
    file = Path(zoo_kinds.__file__)
    network = load_model(f"{file}:{name}")
    assert any("rewritten" in note for note in network.notes)
    groups = find_groups(network.module, network.example())
    cut = cut_of(groups, {group.name: [0] for group in groups if not group.locked})
    small = replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))
    save_network(small, tmp_path, None)
    again = load_network(tmp_path)
    assert again.module.state_dict().keys() == small.module.state_dict().keys()
    assert torch.equal(again.logits(again.example()), small.logits(small.example()))
