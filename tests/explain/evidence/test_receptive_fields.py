import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from secateur.common.errors import InputError
from secateur.explain.evidence.receptive_fields import FieldMaps, field_map, receptive_fields
from secateur.explain.evidence.regions import Box
from secateur.network.graph.execution import is_image_map, run_graph
from secateur.network.graph.feature_points import find_stages
from secateur.network.graph.trace import trace


class Pools(nn.Module):
    """Pools of every kind: overlapping, dilated, hanging over the edge; then a slice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=(1, 2), padding=1)
        self.ceil = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.dilated = nn.MaxPool2d(2, 1, dilation=(3, 1))
        self.average = nn.AvgPool2d((3, 2), (1, 2), padding=(1, 0))
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = self.average(self.dilated(self.ceil(F.relu(x))))
        x = self.up(F.hardswish(x))[:, :, 1:-1]
        return self.head(x.amax((2, 3)))


class Maxima(nn.Module):
    """The greater of a map and of itself moved; then the greatest of each row, joined to all of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x):
        x = self.conv(x)
        x = torch.maximum(x, x.roll(4, 2))
        return self.head((x + x.amax(3, keepdim=True)).mean((2, 3)))


class Normalised(nn.Module):
    """Normalised over places, which joins them all; before that padded on two sides."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = F.pad(self.conv(x), (1, 0, 2, 0))
        return self.head(F.relu(self.norm(x * 0.5 - 1)).mean((2, 3)))


class Chosen(nn.Module):
    """Values in order, factors that are counts, places that were looked up."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        ordered = x.sort(2)[0]
        counted = ordered * x.argmax(3, keepdim=True)
        looked_up = x.index_select(3, x.mean((0, 1, 2)).topk(3).indices)
        return self.head(counted[:, :, :, :3] + looked_up)


def seen_by_brute_force(view, node, shape, rounds=24):
    """For every place of the map the box of pixels that move it in some image, when each pixel is changed on its own."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    touched = None
    for _ in range(rounds):
        image = torch.randn(1, *shape, generator=generator)
        changed = image.repeat(height * width, 1, 1, 1)
        offset = torch.randn(channels, generator=generator) * 20
        for pixel in range(height * width):
            changed[pixel, :, pixel // width, pixel % width] += offset
        with torch.no_grad():
            values = run_graph(view, torch.cat([image, changed]), [node])[node]
        moved = ((values[1:] - values[:1]).abs() > 1e-5).any(1)
        touched = moved if touched is None else touched | moved
    boxes = {}
    for row in range(touched.shape[1]):
        for column in range(touched.shape[2]):
            pixels = touched[:, row, column].view(height, width).nonzero()
            if len(pixels):
                (top, left), (bottom, right) = pixels.amin(0).tolist(), pixels.amax(0).tolist()
                boxes[row, column] = Box(left, top, right + 1, bottom + 1)
    return boxes


@pytest.mark.parametrize("name", ["padded", "inverted", "grouped", "dense", "gated", Pools, Maxima, Normalised])
def test_brute_force_sees_the_same_pixels(name, tiny, shake):
    module = tiny(name) if isinstance(name, str) else shake(name())
    example = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    view = trace(module, example)
    nodes = [node for node in view.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    values = run_graph(view, example, nodes)
    maps = [node for node in nodes if is_image_map(values[node])]
    for node in maps[:: max(1, len(maps) // 4)] + maps[-3:]:
        wanted = seen_by_brute_force(view, node, (3, 12, 12))
        places = list(wanted)
        for place in {places[0], places[len(places) // 2 + 1], places[-1]} if len(places) > 2 else places:
            assert receptive_fields(view, node, [place], example)[0] == wanted[place], (node.name, place)


def test_closed_form_of_a_chain(shake):
    """Two 3x3 convolutions and a pool of 2 with stride 2 see 1 + 2 + 2 + 1 pixels a side, 2 apart from place to place."""
    module = shake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)))
    example = torch.zeros(1, 3, 20, 30)
    view = trace(module, example)
    node = next(node for node in view.graph.nodes if node.target == "3")
    for row, column in [(0, 0), (3, 5), (7, 12)]:
        wanted = Box(2 * column, 2 * row, 2 * column + 6, 2 * row + 6)
        assert receptive_fields(view, node, [(row, column)], example)[0] == wanted


def test_closed_form_of_a_resnet():
    """torchvision's ResNet-18: every layer adds (kernel - 1) times the strides before it. At 224 pixels the last is cut."""
    view = trace(models.resnet18(num_classes=5).eval(), example := torch.zeros(1, 3, 224, 224))
    stem, plain, halving = [(7, 2), (3, 2)], [(3, 1)] * 4, [(3, 2)] + [(3, 1)] * 3
    sides, size, step = [], 1, 1
    for layers in (stem + plain, halving, halving, halving):
        for kernel, stride in layers:
            size, step = size + (kernel - 1) * step, step * stride
        sides.append(min(size, 224))
    stages = [point for point in find_stages(view, example) if point.name.startswith("layer")]
    for point, side in zip(stages, sides, strict=True):
        box = receptive_fields(view, point.node, [(point.height // 2, point.width // 2)], example)[0]
        assert (box.right - box.left, box.bottom - box.top) == (side, side)


def test_places_and_layers_that_are_not_there_are_named(tiny):
    example = torch.zeros(1, 3, 12, 12)
    view = trace(tiny("chain"))
    named = {node.target: node for node in view.graph.nodes}
    with pytest.raises(InputError, match=r"conv2 gives a map of 6 rows and 6 columns; \(6, 0\) is not in it"):
        receptive_fields(view, named["conv2"], [(6, 0)], example)[0]
    with pytest.raises(InputError, match="head gives no feature map"):
        receptive_fields(view, named["head"], [(0, 0)], example)[0]


def test_where_no_gradient_tells_the_box_is_the_whole_image(shake):
    """A constant place of the padding; all that comes after values in order, an ``argmax`` or a choice of places."""
    view = trace(shake(Normalised()))
    named = {node.name: node for node in view.graph.nodes}
    example = torch.zeros(1, 3, 12, 12)
    boxes = receptive_fields(view, named["pad"], [(1, 4), (2, 1)], example)
    assert boxes == [Box(0, 0, 12, 12), Box(0, 0, 3, 3)]
    view = trace(shake(Chosen()))
    named = {node.name: node for node in view.graph.nodes}
    for name in ("getitem", "mul_multiply", "index_select", "head"):
        assert receptive_fields(view, named[name], [(1, 1)], example) == [Box(0, 0, 12, 12)], name
    assert receptive_fields(view, named["conv"], [(1, 1)], example) == [Box(1, 1, 4, 4)]
    with pytest.raises(InputError, match=r"\(1, 3\) is not in it"):
        receptive_fields(view, named["head"], [(1, 3)], example)


def every_map(view, example):
    nodes = [node for node in view.graph.nodes if node.op not in ("output", "placeholder")]
    with torch.no_grad():
        values = run_graph(view, example, nodes)
    return [(node, value.shape[2:]) for node, value in values.items() if is_image_map(value)]


@pytest.mark.parametrize("name", ["padded", "inverted", "dense", "gated", "chain", "plain"])
def test_fields_are_those_of_every_single_place(tiny, name):
    module, example = tiny(name), torch.rand(1, 3, 12, 12)
    view = trace(module, example)
    maps = every_map(view, example)
    assert maps
    for node, (height, width) in maps:
        places = list(itertools.product(range(height), range(width)))
        found = field_map(view, node, example, (height, width))
        assert found is not None
        assert [found.box(*place) for place in places] == receptive_fields(view, node, places, example), node.name


class Uneven(nn.Module):
    """Another stride and padding in each direction, a pool that rounds up."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, (5, 2), (2, 1), (1, 0), dilation=(1, 2))
        self.second = nn.Conv2d(4, 4, 3, padding=(3, 0))

    def forward(self, x):
        return self.second(F.max_pool2d(F.relu(self.first(x)), 2, ceil_mode=True))


class Turned(nn.Module):
    """Rows become columns on the way, so that neither tells a box alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))

    def forward(self, x):
        x = self.first(x)
        return self.second(x.transpose(2, 3))


@pytest.mark.parametrize(("module", "shape"), [(Uneven(), (1, 3, 17, 14)), (Turned(), (1, 3, 12, 12))])
def test_other_networks_get_the_same_boxes_at_any_price(module, shape):
    example = torch.rand(shape)
    view = trace(module.eval(), example)
    fields = FieldMaps(view, example)
    for node, (height, width) in every_map(view, example):
        places = list(itertools.product(range(height), range(width)))
        assert fields.boxes(node, height, width, places) == receptive_fields(view, node, places, example)


def test_fields_that_rows_and_columns_do_not_decide_apart_are_noticed():
    example = torch.rand(1, 3, 12, 12)
    view = trace(Turned().eval(), example)
    node = next(node for node in reversed(view.graph.nodes) if node.op == "call_module")
    assert field_map(view, node, example, (12, 12)) is None
