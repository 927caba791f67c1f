import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.network.graph.execution import output_node, run_graph
from secateur.network.graph.trace import trace
from secateur.network.hooks import pick_logits


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
