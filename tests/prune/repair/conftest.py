"""Networks that lost some units."""

from dataclasses import replace

import pytest

from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups


@pytest.fixture
def cut_one():
    """A network without some units of the group that a layer belongs to; all else stays as it was."""

    def build(network, layer, units):
        groups = find_groups(network.module, network.example())
        group = next(g for g in groups if layer in [member.layer for member in g.producers])
        cut = cut_of(groups, {group.name: units})
        return replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))

    return build


@pytest.fixture
def cut_randomly(random_units):
    def build(network, seed=0, share=0.4):
        groups = find_groups(network.module, network.example())
        cut = cut_of(groups, random_units(groups, seed, share))
        return replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))

    return build
