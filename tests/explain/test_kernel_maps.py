import pytest
import torch

from secateur.explain.kernel_maps import KernelMaps, class_layers, fill_values, kernel_maps
from secateur.network.graph.trace import trace


@pytest.mark.parametrize(("name", "head"), [("padded", "linear"), ("dense", "head"), ("gated", "head")])
def test_the_head_is_the_last_layer(tiny, name, head):
    assert class_layers(trace(tiny(name))) == {head}


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_the_head_of_a_network_that_wraps_its_scores(networks, kind):
    assert class_layers(trace(networks.Wrapped(kind))) == {"inner.head"}


@pytest.mark.parametrize(("shape", "dim"), [((4, 3, 2, 5), 1), ((4, 6, 3), -1), ((4, 3), 1), ((4, 3), -1)])
def test_removed_kernels_are_filled_place_by_place(shape, dim):
    values, fill = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([7.0, 8.0, 9.0])
    for removed in (
        torch.tensor([True, False, True]),
        torch.rand(4, 3, generator=torch.Generator().manual_seed(1)) < 0.5,
    ):
        got = KernelMaps("a", (), dim).filled(values, removed, fill)
        wanted = values.clone()
        for row in range(4):
            for kernel in range(3):
                if removed[kernel] if removed.dim() == 1 else removed[row, kernel]:
                    wanted[row].select(-1 if dim == -1 else 0, kernel).fill_(float(fill[kernel]))
        assert torch.equal(got, wanted)


def test_averages_do_not_depend_on_the_batches(tiny, noise_images):
    view, images = trace(tiny("chain").eval()), noise_images(7)
    maps = list(kernel_maps(view).values())
    whole, parts = (fill_values(view, maps, images, "mean", size, "cpu") for size in (7, 3))
    module, x = tiny("chain").eval(), images.pixels()
    with torch.no_grad():
        first = torch.relu(module.bn1(module.conv1(x)))
    assert torch.allclose(whole["conv1"], first.mean((0, 2, 3)), atol=1e-6)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)
    assert not any(values.any() for values in fill_values(view, maps, images, "zero", 3, "cpu").values())
