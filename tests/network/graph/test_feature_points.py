import itertools

import pytest
import torch
from torch import nn
from torchvision import models

from secateur.common.errors import InputError
from secateur.network.graph.feature_points import find_stages, named_points
from secateur.network.graph.trace import trace


def stages(module, side=64):
    example = torch.zeros(2, 3, side, side)
    return find_stages(trace(module.eval(), example), example)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # Cheng et al. 2023, section 3.2: the last convolution of each stage, behind its BatchNorm and ReLU
        ("vgg16_bn", [("features.5", 64), ("features.12", 128), ("features.22", 256), ("features.32", 512),
                      ("features.42", 512)]),
        ("resnet18", [("relu", 64), ("layer1", 64), ("layer2", 128), ("layer3", 256), ("layer4", 512)]),
        ("mobilenet_v2", [("features.2.conv.0", 96), ("features.4.conv.0", 144), ("features.7.conv.0", 192),
                          ("features.14.conv.0", 576), ("features", 1280)]),
    ],
)  # fmt: skip
def test_stages_of_known_networks(name, wanted):
    found = stages(getattr(models, name)(num_classes=10))
    assert [(point.name, point.channels) for point in found] == wanted
    assert all(first.height > second.height for first, second in itertools.pairwise(found))


def test_densenet_ends_its_stages_where_resolution_falls():
    found = stages(models.densenet121(num_classes=10))
    assert [(point.channels, point.height) for point in found] == [(64, 32), (128, 16), (256, 8), (512, 4), (1024, 2)]


def test_stages_of_a_network_of_the_user(tiny):
    example = torch.zeros(2, 3, 12, 12)
    found = find_stages(trace(tiny("padded").eval(), example), example)
    assert [(point.name, point.channels, point.height) for point in found] == [
        ("layer1", 8, 12),
        ("layer2", 16, 6),
        ("layer3", 32, 3),
    ]


def test_convolutions_without_padding_do_not_end_a_stage():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3)
    )
    assert [(point.name, point.height) for point in stages(module)] == [("3", 60), ("5", 28)]


def test_layers_and_blocks_can_be_named_in_any_order(tiny):
    example = torch.zeros(2, 3, 12, 12)
    view = trace(tiny("padded").eval(), example)
    found = named_points(view, example, ["layer3", "layer1.0.conv1"])
    assert [(point.name, point.channels) for point in found] == [("layer1.0.conv1", 8), ("layer3", 32)]
    for names, message in (
        (["layer9"], "no layer 'layer9'"),
        (["linear"], "no feature map"),
        (["layer3", "layer3.0"], "same feature map"),
    ):
        with pytest.raises(InputError, match=message):
            named_points(view, example, names)


def test_a_network_without_feature_maps_has_no_stages():
    with pytest.raises(InputError, match="no stages"):
        stages(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4)))
