import pytest
import torch

from attribution_cases import PATHS, Residual, Straight, near, summed
from secateur.explain.attribution.attributions import attribute


def integral(module, method, layer, pixels, label, steps=1500):
    """The path integral of one image by the midpoint rule, written out."""
    ends = torch.linspace(0, 1, steps + 1).view(-1, 1, 1, 1)
    middles = (ends[1:] + ends[:-1]) / 2
    if method == "integrated-gradients":
        with torch.no_grad():
            here, there = (module.rest(x.unsqueeze(0))[layer] for x in (torch.zeros_like(pixels), pixels))
        path = (here + middles.view(-1, *[1] * (here.dim() - 1)) * (there - here)).requires_grad_()
        logits = module.rest(pixels.expand(steps, -1, -1, -1), **{layer: path})["head"][:, label]
        (gradient,) = torch.autograd.grad(logits.sum(), path)
        return summed((gradient.mean(0) * (there - here)[0]).unsqueeze(0))[0]
    maps = module.rest(middles * pixels)
    (gradient,) = torch.autograd.grad(maps["head"][:, label].sum(), maps[layer])
    if method == "internal-influence":
        return summed(gradient.mean(0).unsqueeze(0))[0]
    with torch.no_grad():
        activation = module.rest(ends * pixels)[layer]
    return summed((gradient * (activation[1:] - activation[:-1])).sum(0).unsqueeze(0))[0]


@pytest.mark.parametrize("method", PATHS)
@pytest.mark.parametrize("kind", [Straight, Residual])
def test_path_methods_are_the_integrals_they_name(method, kind, shake, network_of, noise_images):
    module, images = shake(kind()), noise_images(3)
    found = attribute(network_of(module), images, method, batch_size=24)
    assert list(found.layers) == [
        name for name, child in module.named_modules() if hasattr(child, "weight") and "norm" not in name
    ]
    for layer, values in found.layers.items():
        wanted = torch.stack(
            [
                integral(module, method, layer, x, y)
                for x, y in zip(images.pixels(), images.labels.tolist(), strict=True)
            ]
        )
        assert near(values, wanted, 0.03), layer
