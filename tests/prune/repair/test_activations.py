import pytest
import torch

from secateur.network.graph.trace import trace
from secateur.prune.repair.activations import Activations, Stream


@pytest.fixture
def case(tiny, noise_images):
    """A traced network, images, and what its convolutions and its head return, caught by hooks."""
    module, images = tiny("padded"), noise_images(10)
    names = ["conv1", "layer1.0.conv2", "layer3.0.conv1", "linear"]
    caught = {}
    handles = [
        module.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: caught.setdefault(name, out))
        for name in names
    ]
    with torch.no_grad():
        module(images.pixels())
    for handle in handles:
        handle.remove()
    view = trace(module, images.pixels()[:2])
    return view, images, {node: caught[node.target] for node in view.graph.nodes if node.target in caught}


def equal(batches, wanted):
    return torch.allclose(torch.cat(list(batches)), wanted, atol=1e-5)


def test_values_are_those_of_the_network_and_are_dropped_after_their_last_reader(case):
    view, images, wanted = case
    activations = Activations(view)
    activations.feed(images, 4)
    assert activations.batches == 3
    first, *_, last = wanted
    activations.hold(first)
    with torch.no_grad():
        for node, value in wanted.items():
            assert equal(activations.get(node), value), node
        assert equal([activations.read(first, batch) for batch in range(3)], wanted[first])
        activations.release(first)
        with pytest.raises(KeyError):
            activations.read(first, 0)
        assert equal(activations.get(first), wanted[first]), "computed again"
        assert equal(activations.get(last), wanted[last])


@pytest.mark.parametrize("memory_bytes", [0, 2**30])
def test_a_stream_gives_the_same_values_wherever_it_stands(case, memory_bytes):
    view, images, wanted = case
    stream = Stream(view, images, 4, memory_bytes)
    nodes = list(wanted)
    with torch.no_grad():
        for place, node in enumerate(nodes):
            stream.advance(node)
            found = zip(*stream.values(nodes[place:]), strict=True)
            for later, batches in zip(nodes[place:], found, strict=True):
                assert equal(batches, wanted[later]), (node, later)
    assert stream.shapes[nodes[0]] == (1, 8, 12, 12)
