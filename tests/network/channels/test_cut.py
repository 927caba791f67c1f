import copy

import pytest
import torch

from secateur.common.errors import InputError
from secateur.network.channels.cut import LayerCut, apply_cut, cut_from_json, cut_of, cut_to_json, rest_of_cut
from secateur.network.channels.follow import find_groups

TINY = ("padded", "inverted", "grouped", "dense", "gated", "chain", "plain")


LARGE = ("resnet18", "vgg", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "resnext", "efficientnet_b0")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*TINY, *LARGE])
def test_cutting_equals_masking(subject, random_units, masked, in_double, name, seed):
    module, x = subject(name, seed)
    groups = find_groups(module, x)
    removed = random_units(groups, seed)
    small = apply_cut(module, cut_of(groups, removed), x)
    whole, got = in_double(module, x), in_double(small, x)
    with masked(copy.deepcopy(module), groups, removed) as other:
        wanted = in_double(other, x)
    effect = float((wanted - whole).abs().max())
    assert effect > 1e-3 * float(whole.abs().max()), "masking must matter, or nothing is proved"
    assert float((got - wanted).abs().max()) < 1e-8 * max(effect, float(wanted.abs().max()))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())


def test_a_cut_survives_json(subject, random_units):
    module, x = subject("gated")
    groups = find_groups(module, x)
    cut = cut_of(groups, random_units(groups))
    assert cut_from_json(cut_to_json(cut)) == cut


def test_another_width_is_named(subject, random_units):
    module, x = subject("chain")
    groups = find_groups(module, x)
    cut = cut_of(groups, random_units(groups))
    once = apply_cut(module, cut, x)
    with pytest.raises(InputError, match=r"(conv1|bn1|conv2|bn2|head) has \d+ channels, the plan was made for \d+"):
        apply_cut(once, cut, x)


def test_a_cut_for_another_network_is_refused(subject):
    module, x = subject("chain")
    with pytest.raises(InputError, match="'elsewhere'"):
        apply_cut(module, {"elsewhere": LayerCut((0,), (), 8, None)}, x)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        ({"nowhere": [0]}, "'nowhere'"),
        ({"head": [0]}, "classes of the head"),
        ({"conv1": range(8)}, "all 8 units"),
        ({"conv1": [8]}, "units 0 to 7"),
        ({"conv1": [-1]}, "units 0 to 7"),
    ],
)
def test_removals_that_cannot_be(subject, removed, words):
    module, x = subject("chain")
    with pytest.raises(InputError, match=words):
        cut_of(find_groups(module, x), removed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TINY)
def test_two_cuts_equal_one(tiny, random_units, name, seed, equal):
    """Random units go, then more; the rest of the cut takes the first result to where the whole cut leads."""
    module, example = tiny(name, seed), torch.zeros(2, 3, 12, 12)
    groups = find_groups(module, example)
    whole = random_units(groups, seed, 0.6)
    early = {group: units[: seed * len(units) // 2] for group, units in whole.items()}
    first = apply_cut(module, cut_of(groups, early), example)
    rest = rest_of_cut(cut_of(groups, whole), cut_of(groups, early))
    assert equal(apply_cut(first, rest, example), apply_cut(module, cut_of(groups, whole), example))


@pytest.mark.parametrize("name", TINY)
def test_the_rest_counts_what_is_left(tiny, random_units, name):
    """Channel by channel: what the rest removes from the remaining ones is what the whole removes and the first did not."""
    module = tiny(name)
    groups = find_groups(module, torch.zeros(2, 3, 12, 12))
    whole = random_units(groups, 4, 0.7)
    full, done = cut_of(groups, whole), cut_of(groups, {group: units[::2] for group, units in whole.items()})
    rest = rest_of_cut(full, done)
    assert rest_of_cut(full, {}) == full
    assert rest_of_cut(full, full) == {}
    for layer, part in full.items():
        for side in ("out", "in"):
            width, removed = getattr(part, f"{side}_width"), getattr(part, f"{side}_removed")
            gone = getattr(done[layer], f"{side}_removed") if layer in done else ()
            left = [channel for channel in range(width or 0) if channel not in gone]
            now = getattr(rest[layer], f"{side}_removed") if layer in rest else ()
            assert {*gone, *(left[index] for index in now)} == set(removed)
            if now:
                assert getattr(rest[layer], f"{side}_width") == len(left)
