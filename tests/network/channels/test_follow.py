import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.dependency_graph import follow_groups
from secateur.network.channels.follow import find_groups
from secateur.network.channels.labelled_groups import groups_of
from secateur.network.channels.zero_pad import followable
from secateur.network.graph.trace import trace
from secateur.network.load import load_model
from secateur.network.provenance.labelling import label_channels
from secateur.network.rewrites.plain import make_plain

TINY = ("padded", "inverted", "grouped", "dense", "gated", "chain", "plain")


LARGE = ("resnet18", "vgg", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "resnext", "efficientnet_b0")


HEADS = {"resnet18": "fc", "vgg": "classifier.5", "mobilenet_v2": "classifier.1", "mobilenet_v3_small": "classifier.3"}


HEADS |= {"densenet121": "classifier", "resnext": "fc", "efficientnet_b0": "classifier.1", "padded": "linear"}


def locked(groups):
    return {group.name: group.locked for group in groups if group.locked}


def matmul_layers(module):
    return [name for name, child in module.named_modules() if isinstance(child, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", [*TINY, *LARGE])
def test_every_unit_is_open_but_the_classes(subject, name):
    module, x = subject(name)
    groups = find_groups(module, x)
    assert list(locked(groups)) == [HEADS.get(name, "head")]
    made = [member.layer for group in groups for member in group.producers]
    assert sorted(made) == sorted(matmul_layers(module)), "every layer's kernels belong to one group"
    for group in groups:
        for member in group.producers:
            flat = sorted(itertools.chain.from_iterable(member.channels))
            assert flat == list(range(module.get_submodule(member.layer).weight.shape[0]))


def test_one_stream_at_a_time_in_a_padded_network(tiny, in_double):
    """Written out by hand: who reads which stream in a CIFAR ResNet with zero-padding shortcuts."""
    module, x = tiny("padded"), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    readers = {
        "conv1": ("layer1.0.conv1", "layer1.0.shortcut", "layer2.0.conv1", "layer2.0.shortcut"),
        "layer2.0.conv2": ("layer3.0.conv1", "layer3.0.shortcut"),
        "layer3.0.conv2": ("linear",),
        "layer2.0.conv1": ("layer2.0.conv2",),
    }
    groups = find_groups(module, x)
    by_name = {group.name: group for group in groups}
    for name, where in readers.items():
        group = next(g for g in groups if name in [m.layer for m in g.producers])
        assert group.units == module.get_submodule(name).out_channels
        gone = [0, 3]
        small = apply_cut(module, cut_of(groups, {group.name: gone}), x)
        other = copy.deepcopy(module)
        for reader in where:
            if reader == "layer1.0.shortcut":
                continue  # an identity: what it passes on is zeroed where it is read
            other.get_submodule(reader).register_forward_pre_hook(
                lambda _, inputs, gone=tuple(gone): inputs[0].index_fill(1, torch.tensor(gone), 0)
            )
        assert torch.allclose(in_double(small, x), in_double(other, x), rtol=0, atol=1e-9)
    assert sum(not group.locked for group in by_name.values()) == 3 + 3


def test_resnet18_has_a_group_a_block_and_a_group_a_stream(subject):
    module, x = subject("resnet18")
    groups = find_groups(module, x)
    streams = [group for group in groups if group.stream]
    assert sorted(group.units for group in streams) == [64, 128, 256, 512]
    inner = [group for group in groups if not group.stream and not group.locked]
    assert sorted(group.units for group in inner) == sorted([64, 128, 256, 512] * 2)
    assert all([m.layer[-5:] for m in group.producers] == ["conv1"] for group in inner)


def test_the_network_given_stays_as_it_is(subject, random_units):
    for name in ("padded", "gated", "grouped"):
        module, x = subject(name)
        module.train()
        module.get_submodule(matmul_layers(module)[0]).weight.requires_grad_(False)
        state = copy.deepcopy(module.state_dict())
        flags = [p.requires_grad for p in module.parameters()]
        groups = find_groups(module, x)
        apply_cut(module, cut_of(groups, random_units(groups)), x)
        assert module.training
        assert flags == [p.requires_grad for p in module.parameters()]
        assert state.keys() == module.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["padded", "inverted", "dense", "resnet18"])
def test_frozen_parameters_do_not_disturb(subject, name):
    module, x = subject(name)
    free = find_groups(module, x)
    assert find_groups(module.requires_grad_(False), x) == free


def test_two_searches_find_the_same(subject):
    for name in ("padded", "densenet121"):
        assert find_groups(*subject(name)) == find_groups(*subject(name))


TRANSFORMERS = {
    "shufflenet": lambda: models.shufflenet_v2_x0_5(num_classes=5),
    "swin": lambda: models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=5),
    "vit": lambda: models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5),
    "maxvit": lambda: models.MaxVit((32, 32), 8, 2, [16], [1], 8, 0.0, num_classes=5),
}
HEADS_AND_MLPS = {
    "swin": ["features.1.0.attn.qkv", "features.3.1.attn.qkv", "features.1.0.mlp.0"],
    "vit": ["encoder.layers.encoder_layer_0.self_attention.query", "encoder.layers.encoder_layer_1.mlp.0"],
    "maxvit": ["blocks.0.layers.0.layers.window_attention.attn_layer.1.to_qkv"],
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_shuffles_heads_and_mlps_are_cut_like_the_rest(shake, random_units, masked, in_double, name):
    torch.manual_seed(0)
    module, x = shake(TRANSFORMERS[name]()), torch.randn(2, 3, 32, 32)
    groups = find_groups(module, x)
    open_groups = [group.name for group in groups if not group.locked]
    assert len(open_groups) == len(groups) - 1  # all but the classes
    assert set(HEADS_AND_MLPS.get(name, [])) <= set(open_groups)
    mixing = {group.name for group in groups if any(member.kind == "mixing_norm" for member in group.members)}
    removed = {group: units for group, units in random_units(groups).items() if group not in mixing}
    assert removed
    small = apply_cut(module, cut_of(groups, removed), x)
    plain = make_plain(module, x).module  # under whose names the groups are
    with masked(copy.deepcopy(plain), groups, removed) as other:
        assert torch.allclose(in_double(small, x), in_double(other, x), rtol=0, atol=1e-8)


class Unused(nn.Module):
    """A layer that no forward pass reads, and one layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.forgotten = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.head(F.relu(self.again(F.relu(self.again(x)))).mean((2, 3)))


def test_a_layer_called_twice_and_one_never_called(shake, random_units, masked, in_double):
    torch.manual_seed(0)
    module, x = shake(Unused()), torch.randn(2, 3, 8, 8)
    groups = find_groups(module, x)
    removed = random_units(groups)
    assert "forgotten" not in {member.layer for group in groups if not group.locked for member in group.producers}
    small = apply_cut(module, cut_of(groups, removed), x)
    with masked(copy.deepcopy(module), groups, removed) as other:
        assert torch.allclose(in_double(small, x), in_double(other, x), rtol=0, atol=1e-8)


def test_the_digits_are_open_throughout():
    network = load_model("digits")
    groups = find_groups(network.module, network.example())
    assert list(locked(groups)) == ["head"]
    assert sorted(group.units for group in groups if not group.locked) == [32, 32, 64, 64, 64]


def test_the_real_cifar_networks_are_open_throughout(shared, random_units, in_double):
    """Whole widths: 16, 32 and 64 in the streams of ResNet-20 and inside its nine blocks."""
    network = load_model(
        f"{shared / 'models' / 'resnet_cifar.py'}:resnet20", str(shared / "models" / "resnet20-12fca82f.th")
    )
    groups = find_groups(network.module, network.example())
    assert list(locked(groups)) == ["linear"]
    assert sorted(g.units for g in groups if not g.locked) == sorted([16, 32, 64] + [16] * 3 + [32] * 3 + [64] * 3)
    x = network.example()
    gone = {"layer1.1.conv1": [0, 1, 5], "layer3.2.conv1": list(range(40))}
    small = apply_cut(network.module, cut_of(groups, gone), x)
    other = copy.deepcopy(network.module)
    for name, channels in gone.items():
        reader = other.get_submodule(name.replace("conv1", "conv2"))
        reader.register_forward_pre_hook(lambda _, i, c=tuple(channels): i[0].index_fill(1, torch.tensor(c), 0))
    assert torch.allclose(in_double(small, x), in_double(other, x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    ["padded", "inverted", "grouped", "dense", "gated", "chain", "plain", "resnet18", "mobilenet_v3_small", "resnext"],
)
def test_groups_are_those_of_torch_prunings_graph(subject, name):
    module, x = subject(name)
    plain = followable(module, x[:1])

    def units(groups):
        return {
            frozenset(
                (member.layer, member.side, channel) for member in group.members for channel in member.channels[unit]
            )
            for group in groups
            for unit in range(group.units)
        }

    ours = groups_of(label_channels(trace(plain, x[:1]), x), plain)
    assert units(ours) == units(follow_groups(plain, x))
