import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.rewrites.plain import make_plain


def locked(groups):
    return {group.name: group.locked for group in groups if group.locked}


class Shuffled(nn.Module):
    """ShuffleNet's shuffle between two grouped convolutions' worth of channels."""

    def __init__(self, parts=2):
        super().__init__()
        self.parts = parts
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        count, channels, height, width = x.shape
        x = x.view(count, self.parts, channels // self.parts, height, width).transpose(1, 2).reshape(x.shape)
        return self.head(F.relu(self.second(x)).mean((2, 3)))


class Repeated(nn.Module):
    """The channels, twice, in an order that no layer shows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)).flip(1))).mean((2, 3)))


class Softened(nn.Module):
    """A softmax over channels: removing one is not leaving it out."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(self.first(x).softmax(1))).mean((2, 3)))


@pytest.mark.parametrize(("kind", "opened"), [(Shuffled, True), (Repeated, True), (Softened, False)])
def test_channels_that_are_mixed_on_the_way_are_locked_and_those_that_move_are_cut(
    shake, random_units, masked, in_double, kind, opened
):
    torch.manual_seed(0)
    module, x = shake(kind()), torch.randn(2, 3, 8, 8)
    groups = find_groups(module, x)
    assert ("softmax" in locked(groups).get("first", "")) != opened
    removed = random_units(groups)
    assert set(removed) == ({"first", "second"} if opened else {"second"})
    with masked(copy.deepcopy(make_plain(module, x).module), groups, removed) as other:
        small = apply_cut(module, cut_of(groups, removed), x)
        assert torch.allclose(in_double(small, x), in_double(other, x), rtol=0, atol=1e-9)


class Auxiliary(nn.Module):
    """A second head that only training reads."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 12, 3, padding=1)
        self.side = nn.Linear(8, 4)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        scores = self.head(F.relu(self.second(x)).mean((2, 3)))
        return (scores, self.side(x.mean((2, 3)))) if self.training else scores


def test_a_branch_of_training_is_left_out_and_what_it_reads_is_cut(shake, masked, in_double):
    module, x = shake(Auxiliary()), torch.randn(2, 3, 8, 8)
    groups = find_groups(module, x)
    assert set(locked(groups)) == {"head"}
    removed = {"first": [1, 2], "second": [0, 5]}
    small = apply_cut(module, cut_of(groups, removed), x)
    assert "side" not in dict(small.named_modules())
    assert small.train()(torch.cat([x, x])).shape == (4, 4)
    with masked(copy.deepcopy(module), groups, removed) as other:
        assert torch.allclose(in_double(small.eval(), x), in_double(other, x), rtol=0, atol=1e-9)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.coarse = nn.Linear(8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.first(x)).mean((2, 3))
        return self.head(x), self.coarse(x)


def test_what_two_heads_read_is_cut_for_both_and_neither_loses_classes(shake, random_units, masked):
    module, x = shake(TwoHeads()), torch.randn(2, 3, 8, 8)
    groups = find_groups(module, x)
    assert set(locked(groups)) == {"coarse", "head"}
    removed = random_units(groups)
    small = apply_cut(module, cut_of(groups, removed), x)
    with masked(copy.deepcopy(module), groups, removed) as other:
        for got, wanted in zip(small(x), other(x), strict=True):
            assert torch.allclose(got, wanted, rtol=0, atol=1e-5)


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.last = nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(F.relu(self.last(F.relu(self.up(F.relu(self.down(x)))))).mean((2, 3)))


class Normalised(nn.Module):
    """GroupNorm, a learned scale per channel, PReLU."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.act = nn.PReLU(16)
        self.scale = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.act(self.first(x)) * self.scale
        return self.head(F.relu(self.norm(self.second(x))).mean((2, 3)))


@pytest.mark.parametrize("kind", [Transposed, Normalised])
def test_odd_layers_are_cut_right_or_locked(shake, masked, in_double, kind):
    torch.manual_seed(0)
    module, x = shake(kind()), torch.randn(2, 3, 8, 8)
    groups = find_groups(module, x)
    open_ones = [g for g in groups if not g.locked and all(m.kind != "mixing_norm" for m in g.members)]
    assert open_ones
    removed = {group.name: [0, 2] for group in open_ones}
    small = apply_cut(module, cut_of(groups, removed), x)
    with masked(copy.deepcopy(module), groups, removed) as other:
        assert torch.allclose(in_double(small, x), in_double(other, x), rtol=0, atol=1e-8)
    for group in groups:
        if not group.locked:
            assert apply_cut(module, cut_of(groups, {group.name: [0]}), x)(x).isfinite().all()
