from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision import models

from secateur.common.errors import InputError
from secateur.network.graph.target_layer import NewLayer, find_target, insert_layer
from secateur.network.graph.trace import trace
from secateur.network.load import load_model
from secateur.network.network import Source
from secateur.network.saved import load_network, save_network

# name -> (target, its channels): by reading torchvision's code
KNOWN = {
    "alexnet": ("features.10", 256),
    "vgg11": ("features.18", 512),
    "vgg11_bn": ("features.25", 512),
    "resnet18": ("layer4", 512),
    "mobilenet_v2": ("features", 1280),
    "mobilenet_v3_small": ("features", 576),
    "efficientnet_b0": ("features", 1280),
    "squeezenet1_1": ("features", 512),
    "shufflenet_v2_x0_5": ("conv5", 1024),
    "regnet_y_400mf": ("trunk_output", 440),
    "googlenet": ("inception5b", 1024),
    "densenet121": (None, 1024),
    "convnext_tiny": ("features", 768),
    "mnasnet0_5": ("layers", 1280),
}


def target(module, size=64, name=None, channels=3):
    example = torch.randn(2, channels, size, size)
    return find_target(trace(module.eval(), example), example, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_the_last_map_in_front_of_the_head_is_found(name):
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    point = target(models.get_model(name, weights=None, **options))
    wanted, channels = KNOWN[name]
    assert point.channels == channels
    assert wanted is None or point.name == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("resnet18", ("layer4", 512)), ("mobilenet_v2", ("features", 1280)), ("vgg11", ("features.18", 512))],
)
def test_maps_of_one_place_are_taken_in_front_of_their_pools(name, wanted):
    """At 32 pixels a side the last map has one place, or four, and pools and dropout leave it as it is."""
    point = target(models.get_model(name, weights=None), 32)
    assert (point.name, point.channels) == wanted


def test_a_vision_transformer_has_the_features_that_its_head_reads():
    module = models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48, num_classes=5)
    point = target(module)
    assert (point.channels, point.height, point.width) == (32, 1, 1)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("Padded", ("layer3", 32)), ("Dense", ("mix", 8)), ("Chain", ("conv2", 16)), ("Plain", ("conv2", 6))],
)
def test_tiny_networks(tiny, name, wanted):
    point = target(tiny(name), 12)
    assert point.channels == wanted[1]
    assert point.name == wanted[0]


def test_a_layer_may_be_named_and_counts_behind_its_own_activation(tiny):
    module = tiny("Chain")
    first = target(module, 12, "conv1")
    assert (first.name, first.channels, first.height) == ("conv1", 8, 12)
    with torch.no_grad():
        view = trace(module, torch.randn(2, 3, 12, 12))
        node = find_target(view, torch.randn(2, 3, 12, 12), "conv1").node
    assert isinstance(view.get_submodule(str(node.target)), nn.ReLU)


def test_what_a_shortcut_leads_around_is_refused_with_what_would_do(tiny):
    with pytest.raises(InputError, match=r"layer3\.0\.conv2 cannot be the target.*layer3"):
        target(tiny("Padded"), 12, "layer3.0.conv2")


def test_an_unknown_layer_is_refused(tiny):
    with pytest.raises(InputError, match="no layer 'nowhere'"):
        target(tiny("Padded"), 12, "nowhere")


@pytest.mark.parametrize(
    ("name", "after", "filters"),
    [("Padded", "layer3", 10), ("Chain", "conv2", 40), ("Dense", "mix", 12), ("Gated", "last", 8)],
)
def test_a_new_layer_is_put_in_and_what_read_before_reads_it(tiny, network_of, name, after, filters):
    network = network_of(tiny(name))
    x = network.example(3)
    layer = NewLayer(after, filters)
    wide = insert_layer(network.module, x, layer, seed=5)
    again = insert_layer(network.module, x, layer, seed=5)
    other = insert_layer(network.module, x, layer, seed=6)
    with torch.no_grad():
        assert torch.equal(wide(x), again(x))
        assert not torch.equal(wide(x), other(x))
        assert wide(x).shape == (3, 4)
    point = target(wide, 12)
    assert point.channels == filters
    assert torch.equal(
        wide.state_dict()[next(iter(network.module.state_dict()))], next(iter(network.module.state_dict().values()))
    )


def test_a_transformer_takes_a_new_layer_too():
    module = models.VisionTransformer(
        32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    point = target(module, 32)
    wide = insert_layer(module, x, NewLayer(point.name, 24))
    assert wide(x).shape == (2, 5)
    assert target(wide, 32).channels == 24


def test_a_network_with_a_new_layer_is_saved_and_comes_back(tmp_path, networks_file):
    network = load_model(f"{networks_file}:padded")
    layer = NewLayer("layer3", 20)
    module = insert_layer(network.module, network.example(), layer, seed=3)
    with torch.no_grad():
        module.linear.bias.add_(1)  # as training would
    trained = replace(network, module=module, new_layer=layer, source=Source(f"{networks_file}:padded", classes=4))
    save_network(trained, tmp_path, None)
    assert not (tmp_path / "plan.json").exists()
    back = load_network(tmp_path)
    x = network.example(4)
    with torch.no_grad():
        assert torch.equal(back.logits(x), trained.logits(x))
    assert back.new_layer == layer
    assert back.cuts == ()
