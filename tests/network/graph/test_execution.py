import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.network.graph.execution import output_node, run_graph
from secateur.network.graph.reach import depends_on
from secateur.network.graph.segment import Segment
from secateur.network.graph.trace import trace
from secateur.network.hooks import pick_logits


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


def whole(view, images):
    (result,) = run_graph(view, images, [output_node(view)]).values()
    return pick_logits(result)


@pytest.mark.parametrize("name", ["chain", "padded", "gated", "grouped", "inverted", "dense"])
def test_the_whole_graph_is_the_network(tiny, noise_images, name):
    module, images = tiny(name).eval(), noise_images(5).pixels()
    with torch.no_grad():
        assert torch.equal(whole(trace(module, images), images), module(images))


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


def test_changes_reach_all_that_depends_on_a_node(tiny, noise_images):
    """Against a hook on the module; what is read around the change, and the value given, stay as they are."""
    module, images = tiny("padded").eval(), noise_images(4).pixels()
    view = trace(module, images)
    node, before = nodes(view)["layer2.0.conv1"], nodes(view)["layer1.0.conv2"]
    output = output_node(view)
    with torch.no_grad():
        found = run_graph(view, images, [output, before], {node: lambda values: 2 * values})
        untouched = run_graph(view, images, [output, before])
        handle = module.layer2[0].conv1.register_forward_hook(lambda _m, _i, value: 2 * value)
        wanted = module(images)
        handle.remove()
    assert torch.allclose(found[output], wanted, atol=1e-6)
    assert not torch.allclose(found[output], untouched[output], atol=1e-3)
    assert torch.equal(found[before], untouched[before])


def test_what_depends_on_what(tiny, noise_images):
    view = trace(tiny("padded").eval(), noise_images(2).pixels())
    named = nodes(view)
    assert depends_on(named["layer2.0.conv1"], named["layer1.0.conv1"])
    assert not depends_on(named["layer1.0.conv1"], named["layer2.0.conv1"])
    assert depends_on(output_node(view), named["conv1"])


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


CHANGES = (
    lambda x: F.leaky_relu_(x, 0.01),
    lambda x: x.clamp_(-0.1, 0.2),
    lambda x: x.sub_(0.1),
    lambda x: x.abs_(),
    lambda x: F.elu_(x),
    lambda x: F.threshold_(x, 0.1, 0.0),
    lambda x: F.relu(x, True),
    lambda x: torch.sigmoid_(x),
    lambda x: x.div_(2),
)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_in_place_are_not_lost(change):
    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x):
            x = self.conv(x)
            change(x)
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    module, images = Changed().eval(), torch.rand(3, 3, 8, 8)
    view = trace(module, images)
    with torch.no_grad():
        assert torch.allclose(whole(view, images), module(images), atol=1e-6)
        assert torch.allclose(view(images), module(images), atol=1e-6)
