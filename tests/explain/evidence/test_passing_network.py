import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from secateur.explain.evidence.receptive_fields import receptive_fields
from secateur.explain.evidence.regions import Box
from secateur.network.graph.execution import is_image_map, run_graph
from secateur.network.graph.feature_points import find_stages
from secateur.network.graph.trace import trace


def block(*inside):
    """A stem, what is tested and a tail that looks around, after which places differ still."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), *inside, nn.Conv2d(8, 8, 3, padding=1))


class Call(nn.Module):
    """A function of the map as a module that is looked into."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class ChannelsLast(nn.Module):
    """A ConvNeXt block: LayerNorm over the last axis, layer scale, a residual join."""

    def __init__(self):
        super().__init__()
        self.around, self.norm, self.scale = (
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.LayerNorm(8),
            nn.Parameter(torch.zeros(8, 1, 1)),
        )
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        y = self.norm(self.around(x).permute(0, 2, 3, 1))
        y = F.layer_norm(self.narrow(F.gelu(self.wide(y))), (8,))
        return x + self.scale * y.permute(0, 3, 1, 2)


class Gated(nn.Module):
    """Gates at every place; squeezed over each row if ``rows``, over the image if not."""

    def __init__(self, rows):
        super().__init__()
        self.gate, self.rows = nn.Conv2d(8, 8, 1), rows

    def forward(self, x):
        squeezed = x.mean(3, keepdim=True) if self.rows else F.adaptive_avg_pool2d(x, 1)
        x = torch.sigmoid(self.gate(squeezed)) * x
        return torch.mul(x, F.hardsigmoid(self.gate(x)))


class Indexed(nn.Module):
    """Pools that say where their maxima were, which nobody reads."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 1, 1, return_indices=True)

    def forward(self, x):
        x, _ = self.pool(x)
        return F.max_pool2d(x, 2, 1, return_indices=True)[0]


HARD = {
    "channels last": lambda: block(ChannelsLast(), ChannelsLast()),
    "group norm": lambda: block(nn.GroupNorm(2, 8)),
    "group norm of slices": lambda: block(Call(lambda x: F.group_norm(x[:, :, 1:3], 4))),
    "instance norm": lambda: block(nn.InstanceNorm2d(8), Call(lambda x: F.instance_norm(x))),
    "stored instance norm": lambda: block(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "response norm": lambda: block(nn.LocalResponseNorm(3), Call(lambda x: F.local_response_norm(x, 2))),
    "normalize": lambda: block(Call(lambda x: F.normalize(x)), Call(lambda x: F.normalize(x, dim=3))),
    "softmax": lambda: block(nn.Softmax(1), Call(lambda x: x.softmax(dim=2)), nn.Softmax2d()),
    "own norm": lambda: block(Call(lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5))),
    "own norm of rows": lambda: block(Call(lambda x: (x - x.amax(3, keepdim=True)) / x.var(3, keepdim=True))),
    "gates": lambda: block(*(Gated(rows=False) for _ in range(12))),
    "gates of rows": lambda: block(*(Gated(rows=True) for _ in range(12))),
    "squares": lambda: block(*(Call(lambda x: (x * x).tanh()) for _ in range(12))),
    "clamp": lambda: block(Call(lambda x: torch.clamp(x.clamp(0, 1), max=0.5)), Call(lambda x: x.clamp_(0, 1))),
    "bounds": lambda: block(
        Call(lambda x: F.hardtanh(x)), Call(lambda x: F.relu6(x).clip(min=5)), nn.Threshold(0.1, 20)
    ),
    "own relu": lambda: block(Call(lambda x: x * (x > 0)), Call(lambda x: torch.where(x > 1, x, 0.1 * x))),
    "steps": lambda: block(Call(lambda x: torch.round(x) + x.floor().sign())),
    "greatest": lambda: block(Call(lambda x: x + x.max(3, keepdim=True)[0] + x.min(dim=3, keepdim=True).values)),
    "function of weights": lambda: block(Call(lambda x: F.prelu(x, torch.full((8,), 0.2)).float())),
    "indices": lambda: block(Indexed()),
    "saturated": lambda: block(
        *(Call(lambda x: torch.exp(x.clamp(max=1)) + F.glu(torch.cat([x, 100 * x], 1), 1)) for _ in range(6))
    ),
}


def poisoned(view, node, shape):
    """For every place of the map the box of pixels that make it NaN when they are, a row or a column at a time."""
    height, width = shape[1:]
    images = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)).repeat(height + width, 1, 1, 1)
    for row in range(height):
        images[row, :, row] = float("nan")
    for column in range(width):
        images[height + column, :, :, column] = float("nan")
    with torch.no_grad():
        reached = run_graph(view, images, [node])[node].isnan().any(1)
    boxes = {}
    for row in range(reached.shape[1]):
        for column in range(reached.shape[2]):
            rows = reached[:height, row, column].nonzero().flatten().tolist()
            columns = reached[height:, row, column].nonzero().flatten().tolist()
            if rows:
                boxes[row, column] = Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    return boxes


@pytest.mark.parametrize("name", HARD)
def test_what_hides_gradients_hides_no_pixel(name, shake):
    example = torch.rand(1, 3, 18, 14, generator=torch.Generator().manual_seed(0))
    view = trace(shake(HARD[name]()), example)
    nodes = [node for node in view.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    values = run_graph(view, example, nodes)
    maps = [node for node in nodes if is_image_map(values[node])]
    for node in maps[:8] + maps[-2:]:  # the convolution behind them too
        wanted = poisoned(view, node, (3, 18, 14))
        places = list(wanted)[:: max(1, len(wanted) // 6)]
        assert receptive_fields(view, node, places, example) == [wanted[place] for place in places], node.name


NORMS = {
    "layer": Call(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)),
    "group": nn.Sequential(nn.MaxPool2d((9, 8)), nn.GroupNorm(1, 8)),
    "instance": nn.InstanceNorm2d(8),
    "softmax": nn.Softmax(1),
}


@pytest.mark.parametrize("name", NORMS)
def test_what_a_norm_gives_depends_on_what_it_reads(name, shake):
    """At every place of it: the sum over channels is constant in most of these, which must not hide the pixels."""
    example = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    view = trace(shake(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), NORMS[name])), example)
    last = [node for node in view.graph.nodes if node.op != "output"][-1]
    wanted = poisoned(view, last, (3, 9, 8))
    assert receptive_fields(view, last, list(wanted), example) == list(wanted.values())


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0"])
def test_what_hides_gradients_in_large_networks(name):
    """The end of every stage, at four places: LayerNorm over channels, squeeze and excitation."""
    torch.manual_seed(0)
    view = trace(getattr(models, name)(num_classes=5).eval(), example := torch.rand(1, 3, 32, 32))
    for point in find_stages(view, example):
        wanted = poisoned(view, point.node, (3, 32, 32))
        places = [(row, column) for row in (0, point.height // 2) for column in (0, point.width - 1)]
        assert receptive_fields(view, point.node, places, example) == [wanted[place] for place in places], point.name


def test_weights_of_zero_and_dead_kernels_hide_nothing(shake):
    module = shake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    view = trace(module)
    state = {name: value.clone() for name, value in view.state_dict().items()}
    node = next(node for node in view.graph.nodes if node.target == "3")
    assert receptive_fields(view, node, [(1, 2)], torch.zeros(1, 3, 9, 9))[0] == Box(2, 1, 7, 6)
    assert all(torch.equal(state[name], value) for name, value in view.state_dict().items())
    assert isinstance(view.get_submodule("2"), nn.ReLU)


def test_a_deep_network_neither_overflows_nor_fades(shake):
    """Sixty convolutions of 3x3: 121 pixels a side."""
    module = nn.Sequential(*(nn.Conv2d(1 if index == 0 else 2, 2, 3, padding=1) for index in range(60)))
    view = trace(module)
    node = next(node for node in view.graph.nodes if node.target == "59")
    assert receptive_fields(view, node, [(70, 64)], torch.zeros(1, 1, 140, 140))[0] == Box(4, 10, 125, 131)
