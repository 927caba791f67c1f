from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.common.errors import InputError
from secateur.network.checks import check_network
from secateur.network.load import load_model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, networks_file, tiny, value):
    state = tiny("chain").state_dict()
    state["bn2.bias"][3] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"NaN or infinity in 'bn2\.bias'"):
        load_model(f"{networks_file}:chain", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_class_scores_inside_something(networks, network_of, kind):
    wrapped = networks.Wrapped(kind).eval()
    network = check_network(network_of(wrapped))
    x = network.example()
    assert torch.equal(network.logits(x), wrapped.inner(x))


def with_classes(network_of, networks, names, classes=3):
    module = networks.Chain()
    module.head = nn.Linear(16, classes)
    return replace(network_of(module), class_names=names)


def test_declared_names_must_be_as_many_as_outputs(network_of, networks):
    with pytest.raises(InputError, match="2 class names, but its head has 3"):
        check_network(with_classes(network_of, networks, ("a", "b")))
