import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.explain.evidence.receptive_fields import FieldMaps, field_map
from secateur.explain.evidence.regions import receptive_fields
from secateur.network.graph.execution import is_image_map, run_graph
from secateur.network.graph.trace import trace


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
