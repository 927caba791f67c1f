import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.network.graph.execution import output_node, run_graph
from secateur.network.graph.segment import Segment
from secateur.network.graph.trace import trace


class Counting(nn.Module):
    """Asks for the number of images, reads the image twice and has a branch that the middle does not see."""

    def __init__(self):
        super().__init__()
        self.first, self.side = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.second, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(24, 4)
        self.scale = nn.Parameter(torch.rand(1, 6, 1, 1))

    def forward(self, x):
        count = x.size(0)
        middle = F.relu(self.first(x)) * self.scale
        joined = F.relu(self.second(middle)) + self.side(x)
        return self.head(F.adaptive_avg_pool2d(joined, 2).view(count, -1))


def nodes(view):
    return {str(node.target): node for node in view.graph.nodes}


def test_a_segment_goes_on_from_other_values_row_by_row():
    torch.manual_seed(0)
    module, images = Counting().eval(), torch.rand(3, 3, 8, 8)
    view = trace(module, images)
    source = nodes(view)["first"]
    segment = Segment(view, source, [output_node(view)])
    known = run_graph(view, images, [source, *segment.reads])
    rows = torch.tensor([2, 0, 1, 1, 2])
    values = torch.randn(5, 6, 8, 8)
    (got,) = segment.run(values, images, known, rows)
    with torch.no_grad():
        middle = F.relu(values) * module.scale
        joined = F.relu(module.second(middle)) + module.side(images[rows])
        wanted = module.head(F.adaptive_avg_pool2d(joined, 2).flatten(1))
    assert torch.allclose(got, wanted, atol=1e-6)
    assert not any(str(node.target) == "first" for node in segment.nodes)


def test_a_segment_between_two_places_stops_at_the_second(tiny, noise_images):
    module, images = tiny("padded").eval(), noise_images(4).pixels()
    view = trace(module, images)
    named = nodes(view)
    segment = Segment(view, named["layer1.0.conv2"], [named["layer2.0.conv1"]])
    assert not any(str(node.target).startswith("layer3") for node in segment.nodes)
    known = run_graph(view, images, [named["layer1.0.conv2"], named["layer2.0.conv1"], *segment.reads])
    (again,) = segment.run(known[segment.source], images, known, torch.arange(4))
    assert torch.equal(again, known[named["layer2.0.conv1"]])


def test_what_does_not_depend_on_the_source_is_refused(tiny, noise_images):
    view = trace(tiny("padded").eval(), noise_images(2).pixels())
    with pytest.raises(ValueError, match="does not depend"):
        Segment(view, nodes(view)["layer2.0.conv1"], [nodes(view)["layer1.0.conv1"]])


class Cosine(nn.Module):
    """A head that normalises its weights, as many as there are images, and a learned number."""

    def __init__(self):
        super().__init__()
        self.first, self.weight, self.scale = (
            nn.Conv2d(3, 6, 3),
            nn.Parameter(torch.randn(4, 6)),
            nn.Parameter(torch.rand(1)),
        )

    def forward(self, x):
        x = F.relu(self.first(x)).mean((2, 3)) * (1 - self.scale)
        return F.linear(F.normalize(x), F.normalize(self.weight)) + torch.zeros(x.size(0), 4)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_only_what_comes_from_the_images_is_theirs(count):
    torch.manual_seed(0)
    module, images = Cosine().eval(), torch.rand(count, 3, 8, 8)
    view = trace(module, images)
    segment = Segment(view, nodes(view)["first"], [output_node(view)])
    rows = torch.tensor([0, count - 1, 0])
    known = run_graph(view, images, [segment.source, *segment.reads])
    (got,) = segment.run(known[segment.source].index_select(0, rows), images, known, rows)
    with torch.no_grad():
        assert torch.allclose(got, module(images)[rows], atol=1e-6)
