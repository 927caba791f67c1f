"""Networks with several outputs: the class scores are found or named, and what is returned beside them follows the cut."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx, nn

import zoo_kinds
from secateur.common.errors import InputError
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model, match_classes
from secateur.network.loading.chosen_output import choose_output, put_first
from secateur.network.saved import load_network, save_network
from secateur.network.settings import ModelSettings

FILE = Path(zoo_kinds.__file__)


def load(name, output=None):
    return load_model(ModelSettings(f"{FILE}:{name}", output=output))


@pytest.fixture
def sizes():
    module = zoo_kinds.build("two_heads")
    return {"head": module.head.out_features, "other": module.other.out_features, "features": module.head.in_features}


@pytest.mark.parametrize(
    ("name", "output", "layer"),
    [
        ("two_heads", None, "head"),
        ("two_heads", "0", "head"),
        ("two_heads", "1", "other"),
        ("other_head_first", None, "other"),
        ("other_head_first", "1", "head"),
        ("logits_and_features", None, "head"),
        ("features_and_logits", None, "head"),
        ("named_outputs", None, "head"),
        ("named_outputs", "logits", "head"),
        ("auxiliary_returned", None, "head"),
        ("auxiliary_returned", "1", "auxiliary"),
    ],
)
def test_the_scores_are_those_of_the_head(name, output, layer):
    network, own = load(name, output), zoo_kinds.build(name)
    seen = []
    own.get_submodule(layer).register_forward_hook(lambda _, __, given: seen.append(given))
    with torch.no_grad():
        own.load_state_dict(network.module.state_dict(), strict=False)  # what no class score depends on is left out
        own(network.example())
        torch.testing.assert_close(network.logits(network.example()), seen[0])


@pytest.mark.parametrize(
    ("name", "output", "locked"),
    [
        ("logits_and_features", None, {"head"}),
        ("features_and_logits", None, {"head"}),
        ("named_outputs", None, {"head"}),
        ("two_heads", "1", {"head", "other"}),
        ("other_head_first", "1", {"head", "other"}),
        ("auxiliary_returned", None, {"head", "auxiliary"}),
    ],
)
def test_what_is_returned_beside_the_scores_follows_the_cut(name, output, locked, tmp_path, random_units, in_double):
    network = load(name, output)
    groups = find_groups(network.module, network.example())
    assert {group.name for group in groups if group.locked} == locked
    removed = random_units(groups)
    cut = cut_of(groups, removed)
    small = replace(network, module=apply_cut(network.module, cut, network.example(1)).eval(), cuts=(cut,))
    masked = network.copy().module
    for group in groups:
        for member in (each for each in group.members if each.side == "in" and group.name in removed):
            channels = torch.tensor([c for unit in removed[group.name] for c in member.channels[unit]])
            dim = -1 if isinstance(masked.get_submodule(member.layer), nn.Linear) else 1
            masked.get_submodule(member.layer).register_forward_pre_hook(
                lambda _, given, channels=channels, dim=dim: given[0].index_fill(dim, channels, 0)
            )
    x = network.example()
    torch.testing.assert_close(small.logits(x), replace(network, module=masked).logits(x))
    returned = small.module(x) if small.source.output is None else small.module(x)[1]
    if "features" in name or name == "named_outputs":
        features = returned["features"] if isinstance(returned, dict) else returned[name.startswith("logits")]
        assert features.shape[1] == next(group.units for group in groups if group.name == "tail.0") - len(
            removed["tail.0"]
        )
    save_network(small, tmp_path, None)
    again = load_network(tmp_path)
    assert torch.equal(again.logits(x), small.logits(x))


def test_two_candidates_are_told_and_how_the_other_is_taken():
    network = load("other_head_first")
    (note,) = [note for note in network.notes if "several outputs" in note]
    assert "--output takes '1' instead" in note
    assert not any("several outputs" in note for note in load("named_outputs").notes)


def test_an_output_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(InputError, match="--output 7: the model returns '0' of 2x"):
        load("two_heads", "7")
    with pytest.raises(InputError, match="Name one of 'features', 'logits'"):
        load("named_outputs", "scores")


def test_the_data_tell_which_output_has_as_many_classes(sizes):
    from secateur.network.images.images import images_from_tensor
    from secateur.network.images.splits import make_splits

    network = load("other_head_first")
    names = tuple(f"c{index}" for index in range(sizes["head"]))
    images = images_from_tensor(
        torch.zeros(len(names), *network.input_shape), torch.arange(len(names)), network.preprocessing
    )
    with pytest.raises(InputError, match=r"Of the model's outputs, '1' has .*: --output 1 takes it"):
        match_classes(network, make_splits(dict.fromkeys(("train", "val", "test"), images), names, ()))


def test_a_traced_graph_is_changed_in_place():
    own = zoo_kinds.build("named_outputs")
    traced = fx.symbolic_trace(own)
    put_first(traced, "features")
    x = torch.randn(2, *zoo_kinds.INPUT_SHAPE)
    with torch.no_grad():
        first, whole = traced(x)
        assert torch.equal(first, whole["features"])
        assert torch.equal(whole["logits"], own(x)["logits"])


def test_one_output_is_left_as_it_is():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    kind = type(module)
    assert choose_output(module, None, torch.zeros(2, 3, 2, 2)) == (None, ())
    assert type(module) is kind
