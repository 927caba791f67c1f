from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.common.errors import InputError, UsageError
from secateur.explain.evidence.occlusion import measure_occlusion, occlude, occlusion_map
from secateur.explain.evidence.regions import Box


@pytest.fixture
def case(tiny, network_of, noise_images):
    """A network that normalises by 0.3 and 0.5, and one of its images as it sees it."""

    def build(name="padded", shape=(3, 12, 12)):
        network = network_of(tiny(name), shape)
        preprocessing = replace(network.preprocessing, mean=(0.3,) * 3, std=(0.5,) * 3)
        images = noise_images(1, shape)
        return replace(network, preprocessing=preprocessing), preprocessing.normalise(images.pixels())[0]

    return build


@pytest.mark.parametrize(("fill", "pixel"), [("mean", 0.3), ("grey", 0.5)])
def test_a_box_is_covered_and_both_are_measured(case, fill, pixel):
    network, image = case()
    by_hand = (image * 0.5 + 0.3).clone()
    by_hand[:, 2:7, 4:6] = pixel
    with torch.no_grad():
        before, after = network.module(torch.stack([image, (by_hand - 0.3) / 0.5]))
    for label in (None, 2):
        effect = measure_occlusion(network, image, Box(4, 2, 6, 7), label=label, fill=fill)
        chosen = int(before.argmax()) if label is None else label
        assert (effect.label, effect.fill, effect.box) == (chosen, fill, Box(4, 2, 6, 7))
        assert effect.covered == pytest.approx(10 / 144)
        assert (effect.predicted_before, effect.predicted_after) == (int(before.argmax()), int(after.argmax()))
        got = [effect.logit_before, effect.logit_after, effect.probability_before, effect.probability_after]
        wanted = [before[chosen], after[chosen], before.softmax(0)[chosen], after.softmax(0)[chosen]]
        assert got == pytest.approx([float(value) for value in wanted], abs=1e-5)
        assert torch.allclose(effect.occluded * 0.5 + 0.3, by_hand, atol=1e-6)


def test_a_mask_covers_its_pixels_alone(case):
    network, image = case()
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[1, 3] = mask[8, 10] = True
    effect = measure_occlusion(network, image, mask)
    assert effect.box == Box(3, 1, 11, 9)
    assert effect.covered == pytest.approx(2 / 144)
    assert torch.equal((effect.occluded != image).any(0), mask)
    assert not effect.occluded[:, mask].any()


def test_the_blur_is_a_gaussian(case):
    """Of a single bright pixel the Gaussian itself; of even ground nothing changes, at the edge neither."""
    network, _ = case()
    image = torch.full((3, 41, 41), 0.7)
    everything = torch.ones(1, 41, 41, dtype=torch.bool)
    assert torch.allclose(occlude(image, everything, "blur", network.preprocessing)[0], image, atol=1e-6)
    image[1, 20, 20] += 1
    blurred = occlude(image, everything, "blur", network.preprocessing)[0] - 0.7
    offsets = torch.arange(-20, 21).float()
    distance = offsets.square().view(-1, 1) + offsets.square()
    gaussian = torch.exp(-distance / (2 * 4.1**2)) / (2 * torch.pi * 4.1**2)
    assert torch.allclose(blurred[1], gaussian, atol=2e-4)
    assert blurred[1, 20, 20] > 0.009
    assert blurred[0].abs().max() < 1e-6


def test_a_linear_network_loses_what_the_window_gives(network_of, shake):
    """Closed form: the drop is the weighted sum of the covered pixels."""
    module = shake(nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 10, 4)))
    network = network_of(module, (3, 7, 10))
    image = torch.randn(3, 7, 10, generator=torch.Generator().manual_seed(0))
    found = occlusion_map(network, image, window=3, stride=2, label=1, batch_size=5)
    share = module[1].weight[1].detach().view(3, 7, 10) * image
    assert found.logit_drops.shape == (3, 5)
    for row in range(3):
        for column in range(5):
            wanted = share[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].sum()
            assert torch.allclose(found.logit_drops[row, column], wanted, atol=1e-5)
    probability = module(image.unsqueeze(0)).softmax(1)[0, 1].detach()
    one = measure_occlusion(network, image, Box(8, 4, 10, 7), label=1)
    assert float(found.probability_drops[2, 4]) == pytest.approx(float(probability) - one.probability_after, abs=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(3, 3), (4, 3), (5, 2), (1, 1), (12, 7)])
def test_captum_agrees(case, window, stride):
    """captum gives every pixel the mean drop of the windows over it."""
    from captum.attr import Occlusion

    network, image = case()
    found = occlusion_map(network, image, window=window, stride=stride, label=2)
    peer = Occlusion(network.module).attribute(
        image.unsqueeze(0), sliding_window_shapes=(3, window, window), strides=(3, stride, stride), target=2
    )
    assert found.logit_drops.abs().max() > 1e-3
    assert torch.allclose(found.per_pixel(12, 12), peer[0, 0].float(), atol=1e-5)


def test_the_network_and_the_image_stay_as_they_were(case):
    network, image = case("chain")
    network.module.train()
    state = {name: value.clone() for name, value in network.module.state_dict().items()}
    before = image.clone()
    measure_occlusion(network, image, Box(0, 0, 5, 5), fill="blur")
    occlusion_map(network, image, window=6, stride=3)
    assert network.module.training
    assert torch.equal(image, before)
    assert all(torch.equal(state[name], value) for name, value in network.module.state_dict().items())


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Box(4, 4, 13, 6), r"box \(4, 4, 13, 6\) .* outside the image of 12 columns and 12 rows"),
        (Box(-1, 0, 3, 3), r"box \(-1, 0, 3, 3\)"),
        (Box(4, 4, 4, 6), r"box \(4, 4, 4, 6\)"),
        (torch.zeros(12, 12, dtype=torch.bool), "covers no pixel"),
        (torch.ones(12, 11, dtype=torch.bool), "torch.bool and 12x12 .* got torch.bool of 12x11"),
        (torch.ones(12, 12), "torch.float32 of 12x12"),
    ],
)
def test_regions_that_do_not_fit_are_named(case, region, message):
    with pytest.raises(InputError, match=message):
        measure_occlusion(*case(), region)


def test_other_labels_fills_windows_and_strides_are_refused(case):
    network, image = case()
    with pytest.raises(InputError, match="no class 4; classes are 0 to 3"):
        measure_occlusion(network, image, Box(0, 0, 2, 2), label=4)
    with pytest.raises(UsageError, match=r"unknown fill 'white'\. Expected mean, grey, blur"):
        measure_occlusion(network, image, Box(0, 0, 2, 2), fill="white")
    with pytest.raises(UsageError, match=r"1 to 12 pixels, the image's side \(got 13\)"):
        occlusion_map(network, image, window=13, stride=1)
    with pytest.raises(UsageError, match=r"1 to 3 pixels, the window's side \(got 4\)"):
        occlusion_map(network, image, window=3, stride=4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(case):
    network, image = case()
    first, second = (
        occlusion_map(network, image, window=4, stride=2, label=1, device=name) for name in ("cpu", "cuda")
    )
    assert second.logit_drops.device.type == "cpu"
    assert torch.allclose(first.logit_drops, second.logit_drops, atol=1e-2)
