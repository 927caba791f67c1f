import copy

import pytest
import torch

from coalitions import dense, enumerate_coalitions, inputs, whole
from secateur.common.errors import InputError
from secateur.explain.shapley.explainer import ShapleyExplainer, ShapleyValues, strongest_edges
from secateur.network.graph.execution import run_graph
from secateur.network.graph.topology import JOIN
from shapley_cases import CASES


def test_only_the_wanted_targets_are_computed(case):
    network, images, background = case(CASES["two residuals"][0]())
    every = {found.target: found for found in ShapleyExplainer(network, background)(images)}
    assert list(every) == ["b", JOIN, "c", "join, call 2", "head"]
    assert ShapleyExplainer(network, background, joins=False).targets == ("b", "c", "head")
    (found,) = ShapleyExplainer(network, background, targets=["c"])(images)
    assert torch.equal(found.values, every["c"].values)
    (found,) = ShapleyExplainer(network, background, targets=["a"])(images)  # what the image's channels give
    assert found.sources == ("image",)
    wanted = enumerate_coalitions(
        network, ShapleyExplainer(network, background), "a", ("image",), images[0], inputs(background)
    )
    assert (dense(found, 2)[0] - wanted).abs().max() < 1e-5
    with pytest.raises(InputError, match=r"no layer or join 'd'.*b, join, c"):
        ShapleyExplainer(network, background, targets=["d"])


def test_the_network_is_left_as_it_was_and_readers_are_told(case):
    network, images, background = case(CASES["two residuals"][0]())
    before = copy.deepcopy(network.module.state_dict())
    explainer = ShapleyExplainer(network, background)
    node, told = explainer.topology.sites["c"].node, []
    assert [found.target for found in explainer(images, {node: told.append})] == list(explainer.targets)
    assert torch.allclose(told[0], run_graph(explainer.view, images, [node])[node])
    assert all(torch.equal(before[name], value) for name, value in network.module.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.module.parameters())


def test_two_batches_may_be_read_side_by_side(case):
    network, images, background = case(CASES["two residuals"][0](), images=6)
    explainer = ShapleyExplainer(network, background)
    first, second = whole(explainer, images[:3]), whole(explainer, images[3:])
    for one, other in zip(explainer(images[:3]), explainer(images[3:]), strict=True):
        assert torch.equal(one.values, first[one.target])
        assert torch.equal(other.values, second[other.target])


def test_the_strongest_edges_by_hand():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 7, generator=generator)
    values[1, 2] = 0  # a channel that nothing feeds on this image
    players = torch.stack([torch.randperm(20, generator=generator)[:7] for _ in range(4)])
    given = ShapleyValues("b", ("a",), players, values, 5, "closed form")
    for count in (1, 3, 7, 20):
        found = strongest_edges(given, count)
        assert (found.target, found.sources, found.start, found.explainer) == ("b", ("a",), 5, "closed form")
        assert len(found) == 3
        for image in range(3):
            for channel in range(4):
                row = values[image, channel].tolist()
                size = sum(map(abs, row))
                order = sorted(range(7), key=lambda at, row=row: -abs(row[at]))[:count]
                if size:
                    assert found.players[image, channel].tolist() == [int(players[channel, at]) for at in order]
                shares = [row[at] / size if size else 0.0 for at in order]
                assert found.weights[image, channel].tolist() == pytest.approx(shares, abs=1e-6)
                assert float(found.kept[image, channel]) == pytest.approx(sum(map(abs, shares)), abs=1e-6)
                assert float(found.size[image, channel]) == pytest.approx(size, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(case):
    for make in (CASES["two residuals"][0], CASES["grouped"][0]):
        network, images, background = case(make())
        found = {}
        for device in ("cpu", "cuda"):
            explainer = ShapleyExplainer(network, background, device=device)
            found[device] = {part.target: part.values for part in explainer(images)}
        for name, values in found["cpu"].items():
            assert found["cuda"][name].device.type == "cuda"
            assert torch.allclose(values, found["cuda"][name].cpu(), atol=1e-4)
