from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups


def test_hidden_linear_units_and_flattened_maps(subject):
    module, x = subject("dense")
    groups = {group.producers[0].layer: group for group in find_groups(module, x)}
    assert groups["hidden"].units == 16
    reader = next(member for member in groups["mix"].consumers if member.layer == "hidden")
    assert [list(channels) for channels in reader.channels] == [
        list(range(9 * unit, 9 * unit + 9)) for unit in range(8)
    ]


def test_grouped_convolutions_lose_the_same_places_in_every_part(subject):
    module, x = subject("grouped")
    groups = find_groups(module, x)
    group = next(g for g in groups if "grouped" in [m.layer for m in g.producers])
    makes = next(member for member in group.producers if member.layer == "grouped")
    for channels in makes.channels:
        assert sorted(channel // 4 for channel in channels) == sorted(list(range(4)) * (len(channels) // 4))
    small = apply_cut(module, cut_of(groups, {group.name: [0]}), x)
    assert small.grouped.groups == 4
    assert small.grouped.out_channels % 4 == 0
