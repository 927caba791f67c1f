from dataclasses import replace

import kinds_attention
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo_kinds
from secateur.common.errors import SecateurError
from secateur.network.channels.cut import apply_cut, cut_of
from secateur.network.channels.follow import find_groups
from secateur.network.hooks import frozen
from secateur.network.load import load_model
from secateur.prune import surgery
from secateur.prune.cost import Cost, measure_cost

KINDS = sorted(set(zoo_kinds.KINDS) - {"dropout_always", "scales_by_a_value"} - set(zoo_kinds.LAZY))
SOME = {
    *(
        "position_bias",
        "positional_embedding",
        "positional_buffer",
        "mask_parameter",
        "layer_scale",
        "mlp_mixer",
        "glu",
    ),
    *(
        "vision_transformer",
        "shifted_windows",
        "shuffle_unit",
        "frozen_batch_norm",
        "tied_weights",
        "further_arguments",
    ),
    *("non_local", "transposed_convolution", "two_heads", "response_norm"),
}
"""Of make test; make test-all takes all kinds."""
CHEAPER = {*kinds_attention.KINDS, "mlp_mixer"}
"""Whose attention gets cheaper with heads that leave, and layers over places with channels; costs count them whole."""
TINY = ("padded", "inverted", "grouped", "dense", "gated", "chain", "plain")


LARGE = (
    "resnet18", "mobilenet_v2", "resnext", "mobilenet_v3_small", "vgg", "efficientnet_b0",
    pytest.param("densenet121", marks=pytest.mark.long),
)  # fmt: skip


def counted(module, shape):
    """Torch's own counter, halved, and the parameters of the network as it lies there."""
    with torch.no_grad(), frozen(module), FlopCounterMode(display=False) as counter:
        module(torch.randn(1, *shape))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    statistics = sum(
        buffer.numel() for name, buffer in module.named_buffers() if name.endswith(("running_mean", "running_var"))
    )
    return Cost(counter.get_total_flops() // 2, parameters, 4 * (parameters + statistics))


@pytest.fixture
def subject(tiny, large, network_of):
    def build(name):
        if name == "digits":
            return load_model("digits")
        return network_of(tiny(name)) if name in TINY else network_of(large(name), (3, 32, 32), 5)

    return build


@pytest.mark.parametrize("name", ["digits", *TINY, *LARGE])
def test_costs_are_torchs_of_the_whole_and_of_what_is_really_cut(subject, random_units, name):
    network = subject(name)
    model = measure_cost(network)
    assert model.of({}) == counted(network.module, network.input_shape)
    groups = find_groups(network.module, network.example())
    for seed, share in ((0, 0.2), (1, 0.5), (2, 0.85)):
        cut = cut_of(groups, random_units(groups, seed, share))
        small = apply_cut(network.module, cut, network.example(1))
        assert model.of_cut(cut) == counted(small, network.input_shape)


@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.long) for name in KINDS]
)
def test_costs_of_what_people_bring_are_those_of_what_is_really_cut(name, random_units):
    network = load_model(f"{zoo_kinds.__file__}:{name}")
    groups = find_groups(network.module, network.example())
    model = measure_cost(network).along(groups)
    cut = cut_of(groups, random_units(groups))
    small = apply_cut(network.module, cut, network.example(1))
    planned, found = model.of_cut(cut), counted(small, network.input_shape)
    exact = model.as_run(measure_cost(replace(network, module=small))).of_cut(cut)
    assert planned.parameters == found.parameters
    assert exact.macs == found.macs
    assert planned.macs == found.macs or (planned.macs > found.macs and name in CHEAPER)


def test_a_convolution_by_hand(network_of):
    """5x5 kernels, stride 2, padding 2, 3 -> 8 channels on 12x12: 36 places; then a linear layer of 8 -> 4."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    model = measure_cost(network_of(module))
    assert model.of({}) == Cost(36 * 8 * 75 + 32, 660, 4 * (660 + 16))
    assert model.of({("0", "out"): 3, ("1", "out"): 3, ("4", "in"): 3}) == Cost(36 * 5 * 75 + 20, 414, 4 * (414 + 10))
    assert model.fixed == Cost(0, 0, 0)


def test_matrix_products_outside_layers_are_fixed(network_of):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x):
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            weights = (tokens @ tokens.transpose(1, 2)).softmax(2)
            return self.head((weights @ tokens).mean(1))

    network = network_of(Attending())
    model = measure_cost(network)
    assert model.fixed.macs == 2 * 100 * 100 * 6
    assert model.of({}) == counted(network.module, (3, 12, 12))


def test_a_layer_called_twice_counts_twice(network_of):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x):
            return self.head(self.conv(self.conv(x)).mean((2, 3)))

    model = measure_cost(network_of(Twice()))
    assert model.of({}) == Cost(2 * 144 * 81 + 12, 100, 400)


def test_transposed_convolutions(network_of):
    module = nn.Sequential(nn.ConvTranspose2d(3, 6, 2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    network = network_of(module)
    groups = find_groups(network.module, network.example())
    model = measure_cost(network)
    assert model.of({}) == counted(module, (3, 12, 12)) == Cost(144 * 3 * 6 * 4 + 24, 106, 424)
    if groups[0].locked:
        return
    cut = cut_of(groups, {groups[0].name: [0, 4]})
    assert model.of_cut(cut) == counted(apply_cut(module, cut, network.example(1)), (3, 12, 12))


def test_the_real_network(shared):
    """ResNet-20 on CIFAR-10: 0.27 million parameters (He et al. 2016, table 6), about 41 million MACs."""
    models = shared / "models"
    network = load_model(f"{models / 'resnet_cifar.py'}:resnet20", str(models / "resnet20-cifar10-jpeg.pth"))
    cost = measure_cost(network).of({})
    assert cost.parameters == 269_722
    assert cost == counted(network.module, (3, 32, 32))
    assert round(cost.macs / 1e6) == 41


def test_latency_without_a_table_is_a_defect(tiny, network_of):
    with pytest.raises(SecateurError, match="needs a latency table"):
        measure_cost(network_of(tiny("chain"))).amount("latency")


@pytest.mark.parametrize("name", [*TINY, "digits"])
@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.35])
def test_a_budget_in_bytes_is_kept_and_is_what_the_file_takes(tiny, network_of, plan_for, tmp_path, name, fraction):
    """Against safetensors: what it stores for parameters and running statistics, without its header."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    network = load_model("digits") if name == "digits" else network_of(tiny(name))
    plan = plan_for(network, fraction, "size")
    sizes = []
    for subject in (network, surgery.cut(network, plan)):
        tensors = dict(subject.module.named_parameters())
        running = {key: value for key, value in subject.module.named_buffers() if "running_" in key}
        save_file({key: value.detach().contiguous() for key, value in (tensors | running).items()}, tmp_path / "w")
        content = (tmp_path / "w").read_bytes()
        sizes.append(len(content) - 8 - int.from_bytes(content[:8], "little"))
        with safe_open(tmp_path / "w", "pt") as file:
            assert len(file.keys()) == len(tensors) + len(running)
    assert sizes == [plan.before.bytes, plan.after.bytes]
    assert plan.missed or sizes[1] <= fraction * sizes[0]
    assert plan.resource == "size"


def test_attention_is_counted_by_its_matrix_products(network_of):
    class Attending(nn.Module):
        """A stem of 8 channels, self-attention over its 36 places in two heads, a head."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    fused = torch.backends.mha.get_fastpath_enabled()
    costs = measure_cost(network_of(Attending()))
    places = 36
    in_and_out = places * 8 * 24 + places * 8 * 8
    scores_and_values = 2 * places * places * 8
    assert costs.whole.macs == places * 27 * 8 + in_and_out + scores_and_values + 8 * 4
    assert torch.backends.mha.get_fastpath_enabled() == fused, "as it was"


def test_shared_weights_are_parameters_of_the_first_layer_that_holds_them(network_of):
    first, second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    second.weight = first.weight
    network = network_of(nn.Sequential(nn.Conv2d(3, 8, 3), first, second, nn.Flatten(), nn.Linear(800, 4)))
    costs = measure_cost(network)
    assert costs.whole.parameters == sum(parameter.numel() for parameter in network.module.parameters())
    held = {name: shape.cost(0, 0) for name, shape in costs.layers.items()}
    assert held["1"].parameters == 8 * 8 * 9 + 8
    assert held["2"].parameters == 8
    assert held["2"].macs == held["1"].macs == 100 * 8 * 8 * 9, "the work is done twice all the same"
    assert (costs.fixed.parameters, costs.fixed.bytes, costs.fixed.macs) == (0, 0, 0)
