from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.common.errors import InputError
from secateur.network.images.load import load_images
from secateur.network.load import load_model, match_classes
from secateur.network.settings import ModelSettings


def test_the_settings_object_works_as_the_plain_arguments_do(networks_file):
    first = load_model(f"{networks_file}:plain")
    second = load_model(ModelSettings(model=f"{networks_file}:plain"))
    x = first.example()
    assert torch.equal(first.logits(x), second.logits(x))


def test_digits_come_with_their_weights():
    network = load_model("digits")
    splits = load_images("digits", network.preprocessing)
    batch = network.preprocessing.normalise(splits.test.pixels())
    with torch.no_grad():
        accuracy = float((network.module(batch).argmax(1) == splits.test.labels).double().mean())
    assert accuracy > 0.95
    assert network.class_names == tuple("0123456789")
    assert not network.module.training


def splits_named(names, classes=3):
    from secateur.network.images.images import images_from_tensor
    from secateur.network.images.pictures import Preprocessing
    from secateur.network.images.splits import make_splits

    preprocessing = Preprocessing((3, 12, 12), (0.0,) * 3, (1.0,) * 3)
    labels = torch.arange(6) % classes
    part = images_from_tensor(torch.zeros(6, 3, 12, 12), labels, preprocessing)
    return make_splits({"train": part, "val": part, "test": part}, names, ())


def with_classes(network_of, networks, names, classes=3):
    module = networks.Chain()
    module.head = nn.Linear(16, classes)
    return replace(network_of(module), class_names=names)


def test_class_counts_must_agree(network_of, networks):
    with pytest.raises(InputError, match="head has 4 classes, the data have 3"):
        match_classes(with_classes(network_of, networks, (), 4), splits_named(("a", "b", "c")))


def test_undeclared_names_come_from_the_data(network_of, networks):
    network, splits = match_classes(with_classes(network_of, networks, ()), splits_named(("a", "b", "c")))
    assert network.class_names == ("a", "b", "c")
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_names_in_another_order_relabel_the_images(network_of, networks):
    before = splits_named(("a", "b", "c"))
    network, splits = match_classes(with_classes(network_of, networks, ("c", "a", "b")), before)
    for name in ("train", "validation", "test"):
        old, new = getattr(before, name).labels.tolist(), getattr(splits, name).labels.tolist()
        assert [network.class_names[label] for label in new] == [before.class_names[label] for label in old]
        assert new == [1, 2, 0, 1, 2, 0]
    assert splits.class_names == network.class_names


def test_other_names_are_refused(network_of, networks):
    with pytest.raises(InputError, match="'b', 'z'"):
        match_classes(with_classes(network_of, networks, ("a", "z", "c")), splits_named(("a", "b", "c")))


def test_torchvisions_names_give_way_to_the_folders(network_of, networks):
    network = replace(with_classes(network_of, networks, ("tench", "cock", "hen")), notes=("declared by torchvision",))
    network, splits = match_classes(network, splits_named(("n01440764", "n01514668", "n01514859")))
    assert network.class_names == splits.class_names == ("n01440764", "n01514668", "n01514859")
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert any("sorted folder names" in note for note in splits.notes)
