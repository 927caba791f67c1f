import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError, UsageError
from secateur.explain.faithfulness.adversarial import DescentSettings, fast_gradient_sign, projected_gradient_descent
from secateur.network.images.load import load_images
from secateur.network.load import load_model


@pytest.fixture
def case(tiny, network_of, noise_images):
    """A network that normalises by 0.3 and 0.5, and images some pixels of which are black or white."""

    def build(name="padded", count=6):
        network = network_of(tiny(name))
        preprocessing = replace(network.preprocessing, mean=(0.3,) * 3, std=(0.5,) * 3)
        images = noise_images(count)
        pixels = ((images.pixels() - 0.5) * 3 + 0.5).clamp(0, 1)
        return replace(network, preprocessing=preprocessing), pixels, images.labels

    return build


@pytest.fixture(scope="module")
def digits():
    network = load_model("digits")
    images = load_images("digits", network.preprocessing).test.sample(120, 0)
    return network, images.pixels(), images.labels


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", ["FGSM", "PGD"])
def test_pixels_stay_within_epsilon_and_brightness(case, attack, targeted):
    network, pixels, labels = case()
    assert bool((pixels == 0).any())
    assert bool((pixels == 1).any())
    if attack == "FGSM":
        found = fast_gradient_sign(network, pixels, labels, epsilon=4, targeted=targeted)
    else:
        settings = DescentSettings(epsilon=4, step=3, steps=4, targeted=targeted)
        found = projected_gradient_descent(network, pixels, labels, settings)
    change = (found.pixels - pixels).abs()
    assert float(change.max()) == pytest.approx(4 / 255, abs=1e-6)
    assert float(found.pixels.min()) >= 0
    assert float(found.pixels.max()) <= 1
    with torch.no_grad():
        before, after = (network.module((values - 0.3) / 0.5) for values in (pixels, found.pixels))
    assert torch.allclose(found.logits_before, before, atol=1e-5)
    assert torch.allclose(found.logits_after, after, atol=1e-5)
    wanted = after.argmax(1) == labels if targeted else after.argmax(1) != labels
    assert torch.equal(found.succeeded, wanted)
    sign = -1 if targeted else 1
    assert sign * (F.cross_entropy(after, labels) - F.cross_entropy(before, labels)) > 0
    assert (found.method, found.epsilon, found.targeted) == (attack, 4, targeted)


def test_fgsm_is_the_worst_case_of_a_linear_network(network_of, shake):
    """Two classes: the margin falls by epsilon times the sum of |w1 - w0| / std, and no corner of the cube is worse."""
    module = shake(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)))
    network = network_of(module, (1, 2, 3), 2)
    network = replace(network, preprocessing=replace(network.preprocessing, mean=(0.2,), std=(0.4,)))
    pixels = torch.rand(3, 1, 2, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    labels = torch.tensor([0, 1, 1])
    epsilon = 20 / 255
    found = fast_gradient_sign(network, pixels, labels, epsilon=20)
    got = F.cross_entropy(found.logits_after, labels, reduction="none")
    with torch.no_grad():
        difference = module[1].weight[1] - module[1].weight[0]
        sign = 1.0 - 2 * labels  # the margin of the wrong class over the right one
        logits = module((pixels - 0.2) / 0.4)
        margin = (logits[:, 1] - logits[:, 0]) * sign
        assert torch.allclose(got, F.softplus(margin + epsilon * difference.abs().sum() / 0.4), atol=1e-5)
        corners = torch.tensor(list(itertools.product([-epsilon, epsilon], repeat=6))).view(64, 1, 2, 3)
        for image, label, loss in zip(pixels, labels, got, strict=True):
            losses = F.cross_entropy(module((image + corners - 0.2) / 0.4), label.expand(64), reduction="none")
            assert float(losses.max()) == pytest.approx(float(loss), abs=1e-5)


def test_one_step_by_hand(case):
    network, pixels, labels = case()
    found = fast_gradient_sign(network, pixels, labels, epsilon=2)
    x = pixels.clone().requires_grad_()
    loss = F.cross_entropy(network.module((x - 0.3) / 0.5), labels)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.allclose(found.pixels, (pixels + 2 / 255 * gradient.sign()).clamp(0, 1), atol=1e-7)


@pytest.mark.parametrize("epsilon", [8.0, 16.0, 32.0])
def test_pgd_is_at_least_as_strong_as_fgsm_on_digits(digits, epsilon):
    network, pixels, labels = digits
    single = fast_gradient_sign(network, pixels, labels, epsilon=epsilon)
    settings = DescentSettings(epsilon=epsilon, step=epsilon / 4)
    several = projected_gradient_descent(network, pixels, labels, settings)
    losses = [F.cross_entropy(found.logits_after, labels) for found in (single, several)]
    assert losses[1] >= losses[0] > F.cross_entropy(single.logits_before, labels)
    assert several.succeeded.sum() >= single.succeeded.sum()
    assert several.succeeded.sum() >= (0 if epsilon < 32 else 60)


def test_a_targeted_attack_raises_the_target(digits):
    network, pixels, labels = digits
    targets = (labels + 3) % 10
    for found in (
        fast_gradient_sign(network, pixels, targets, epsilon=16, targeted=True),
        projected_gradient_descent(network, pixels, targets, DescentSettings(epsilon=16, step=4, targeted=True)),
    ):
        rows = torch.arange(len(targets))
        before, after = (logits.softmax(1)[rows, targets] for logits in (found.logits_before, found.logits_after))
        assert after.mean() > before.mean()
        raised = found.logits_after[rows, targets] > found.logits_before[rows, targets]
        assert raised.float().mean() > 0.9


def test_equal_seeds_give_equal_images(case):
    network, pixels, labels = case("chain")
    first, same, other = (
        projected_gradient_descent(network, pixels, labels, DescentSettings(steps=2, seed=seed)).pixels
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_many_images_are_attacked_as_few(case):
    network, pixels, labels = case("chain", 70)
    whole, last = (
        fast_gradient_sign(network, pixels[part], labels[part]).pixels for part in (slice(None), slice(65, 70))
    )
    assert torch.equal(whole[65:], last)


def test_eight_bit_images_are_fractions_of_255(case):
    network, pixels, labels = case("chain")
    eight = (pixels * 255).round().to(torch.uint8)
    by_bytes, by_fractions = (fast_gradient_sign(network, values, labels) for values in (eight, eight.float() / 255))
    assert torch.equal(by_bytes.pixels, by_fractions.pixels)
    assert (by_bytes.pixels - eight.float() / 255).abs().max() <= 8 / 255 + 1e-6


def test_the_network_and_the_images_stay_as_they_were(case):
    network, pixels, labels = case("inverted")
    network.module.train()
    state = {name: value.clone() for name, value in network.module.state_dict().items()}
    before = pixels.clone()
    projected_gradient_descent(network, pixels, labels)
    assert network.module.training
    assert torch.equal(pixels, before)
    assert all(torch.equal(state[name], value) for name, value in network.module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.module.parameters())


class Closed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(x.detach().mean((2, 3)))


def test_a_network_without_gradient_is_refused(network_of, case):
    _, pixels, labels = case()
    with pytest.raises(InputError, match="No gradient reaches the pixels"):
        fast_gradient_sign(network_of(Closed()), pixels, labels)


def test_what_does_not_fit_is_named(case):
    network, pixels, labels = case("chain")
    with pytest.raises(InputError, match="before normalisation"):
        fast_gradient_sign(network, pixels * 2 - 1, labels)
    with pytest.raises(InputError, match="before normalisation"):
        fast_gradient_sign(network, pixels * float("nan"), labels)
    with pytest.raises(InputError, match="no class 4; classes are 0 to 3"):
        projected_gradient_descent(network, pixels, labels + 4 - labels)
    with pytest.raises(UsageError, match="epsilon must be above 0"):
        fast_gradient_sign(network, pixels, labels, epsilon=0)
    with pytest.raises(UsageError, match="step must be above 0"):
        DescentSettings(step=300)
    with pytest.raises(UsageError, match="steps must be at least 1"):
        DescentSettings(steps=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_used(case):
    network, pixels, labels = case("chain")
    devices = set()
    handle = network.module.conv1.register_forward_pre_hook(lambda _, inputs: devices.add(inputs[0].device.type))
    found = projected_gradient_descent(network, pixels, labels, device="cuda")
    handle.remove()
    assert devices == {"cuda"}
    assert found.pixels.device.type == found.logits_after.device.type == "cpu"
    assert (found.pixels - pixels).abs().max() <= 8 / 255 + 1e-6
