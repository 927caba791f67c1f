from secateur.network.graph.execution import output_node
from secateur.network.graph.reach import depends_on
from secateur.network.graph.trace import trace


def nodes(view):
    return {str(node.target): node for node in view.graph.nodes}


def test_what_depends_on_what(tiny, noise_images):
    view = trace(tiny("padded").eval(), noise_images(2).pixels())
    named = nodes(view)
    assert depends_on(named["layer2.0.conv1"], named["layer1.0.conv1"])
    assert not depends_on(named["layer1.0.conv1"], named["layer2.0.conv1"])
    assert depends_on(output_node(view), named["conv1"])
