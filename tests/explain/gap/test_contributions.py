from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from gap_by_hand import by_hand, close, maps_of_chain
from secateur.common.errors import InputError
from secateur.explain.gap import contributions as contributions_module
from secateur.explain.gap.contributions import contributions
from secateur.network.graph.execution import run_graph
from secateur.network.graph.trace import reading_points, trace
from secateur.network.images.load import load_images
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings


@pytest.mark.parametrize("baseline", ["zero", "mean"])
@pytest.mark.parametrize("summed", [False, True])
def test_contributions_are_gradient_times_activation(case, baseline, summed):
    network, images = case("chain")
    found = contributions(network, images, batch_size=4)
    for layer, rows in by_hand(network.module, images).items():
        places = rows[0][0][0].numel()
        average = torch.stack([activation.mean((1, 2)) for activation, _ in rows]).mean(0)
        offset = average.view(-1, 1, 1) if baseline == "mean" else 0
        alpha = torch.stack([(gradient * (activation - offset)).mean((1, 2)) for activation, gradient in rows])
        assert close(found.layers[layer].alpha(baseline, summed=summed), alpha * (places if summed else 1))
        assert found.layers[layer].places == places
        for name, wanted in (
            ("mean", sum(alpha) / len(alpha)),
            ("mean_absolute", sum(abs(row) for row in alpha) / len(alpha)),
            ("root_mean_square", (sum(row * row for row in alpha) / len(alpha)) ** 0.5),
        ):
            assert close(found.statistic(name, baseline)[layer], wanted)
        for label in range(4):
            members = [row for row, own in zip(alpha, images.labels.tolist(), strict=True) if own == label]
            wanted = sum(members) / len(members) if members else torch.zeros(alpha.shape[1])
            assert close(found.per_class(baseline)[layer][label], wanted)


def test_a_class_without_images_has_zero(case, noise_images):
    network, images = case("chain")
    some = images.subset((images.labels != 2).nonzero().flatten())
    found = contributions(network, some).per_class()
    assert all(part.shape[0] == 4 and not part[2].any() and part[0].any() for part in found.values())


def test_the_batch_size_does_not_matter(case):
    for name in ("chain", "padded", "gated"):
        network, images = case(name)
        whole, parts = (contributions(network, images, batch_size=size).layers for size in (64, 3))
        assert all(torch.allclose(whole[layer].zero, parts[layer].zero, rtol=1e-4, atol=1e-6) for layer in whole)


def test_a_linear_network_contributes_what_ablation_takes(networks, shake, network_of, noise_images):
    """Linear in every map: the first-order effect is the effect, whole. The channel is set to its data-set mean."""
    network, images = network_of(shake(networks.Plain())), noise_images(12)
    found = contributions(network, images)
    module, x = network.module, images.pixels()
    with torch.no_grad():
        first = module.conv1(x)
        maps = {"conv1": (first, lambda m: module.head(module.conv2(m).mean((2, 3))))}
        maps["conv2"] = (module.conv2(first), lambda m: module.head(m.mean((2, 3))))
        for layer, (activation, rest) in maps.items():
            whole = rest(activation).gather(1, images.labels.unsqueeze(1)).squeeze(1)
            for channel in range(activation.shape[1]):
                ablated = activation.clone()
                ablated[:, channel] = activation[:, channel].mean()
                drop = whole - rest(ablated).gather(1, images.labels.unsqueeze(1)).squeeze(1)
                got = found.layers[layer].alpha("mean", summed=True)[:, channel]
                assert torch.allclose(got, drop, atol=1e-4 * float(whole.abs().max()))


def test_the_zero_baseline_sums_to_the_logit_of_a_network_without_biases(networks, shake, network_of, noise_images):
    """Euler: a positively homogeneous network equals gradient times activation, at every layer."""

    class Homogeneous(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 8, 3, bias=False)
            self.head = nn.Linear(8, 4, bias=False)

        def forward(self, x):
            return self.head(F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(x)), 2))).mean((2, 3)))

    network, images = network_of(shake(Homogeneous())), noise_images(9)
    found = contributions(network, images)
    with torch.no_grad():
        logits = network.module(images.pixels()).gather(1, images.labels.unsqueeze(1)).squeeze(1)
    for layer in ("conv1", "conv2"):
        assert torch.allclose(found.layers[layer].alpha(summed=True).sum(1), logits, rtol=1e-4, atol=1e-5)


def test_hidden_linear_layers_have_one_place(case):
    network, images = case("dense")
    found = contributions(network, images)
    assert found.layers["hidden"].places == 1
    module = network.module
    caught = {}
    hook = module.hidden.register_forward_hook(lambda _, __, out: caught.__setitem__("h", out))
    module(images.pixels())
    hook.remove()
    hidden = F.relu(caught["h"]).detach().requires_grad_()
    logits = module.head(hidden).gather(1, images.labels.unsqueeze(1)).sum()
    (gradient,) = torch.autograd.grad(logits, hidden)
    assert close(found.layers["hidden"].zero, gradient * hidden.detach())


class Tokens(nn.Module):
    """A linear layer over places: channels come last."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.head(F.relu(self.wide(self.conv(x).flatten(2).transpose(1, 2))).mean(1))


def test_linear_layers_over_places_are_averaged_over_them(shake, network_of, noise_images):
    module, images = shake(Tokens()), noise_images(5)
    found = contributions(network_of(module), images).layers["wide"]
    with torch.no_grad():
        hidden = F.relu(module.wide(module.conv(images.pixels()).flatten(2).transpose(1, 2)))
        gradient = module.head.weight[images.labels].unsqueeze(1) / 100
    assert found.places == 100
    assert close(found.zero, (hidden * gradient).mean(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.again(F.relu(self.first(x))))
        return self.head(F.relu(self.again(F.max_pool2d(x, 2))).mean((2, 3)))


def test_a_layer_called_twice_counts_all_its_places(shake, network_of, noise_images):
    module, images = shake(Twice()), noise_images(6)
    found = contributions(network_of(module), images).layers["again"]
    first = F.relu(module.again(F.relu(module.first(images.pixels()))))
    second = F.relu(module.again(F.max_pool2d(first, 2)))
    logits = module.head(second.mean((2, 3))).gather(1, images.labels.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(logits, [first, second])
    total = sum((g * a).sum((2, 3)) for g, a in zip(gradients, (first, second), strict=True))
    assert found.places == 125
    assert close(found.zero, total.detach() / 125)


def test_one_forward_and_one_backward_pass_a_batch(case, monkeypatch):
    network, images = case("padded", count=11)
    passes = {"forward": 0, "backward": 0}
    real = torch.autograd.grad

    def counting(*args, **kwargs):
        passes["backward"] += 1
        return real(*args, **kwargs)

    original = contributions_module.trace

    def watched(*arguments):
        traced = original(*arguments)
        traced.get_submodule("conv1").register_forward_hook(
            lambda *_: passes.__setitem__("forward", passes["forward"] + 1)
        )
        return traced

    monkeypatch.setattr(contributions_module, "trace", watched)
    monkeypatch.setattr(torch.autograd, "grad", counting)
    seen = []
    contributions(network, images, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert passes == {"forward": 3, "backward": 3}
    assert seen == [(4, 11), (8, 11), (11, 11)]


@pytest.mark.parametrize("name", ["padded", "grouped", "inverted"])
def test_the_network_stays_as_it_was(case, name):
    network, images = case(name)
    network.module.requires_grad_(False)
    state = {key: value.clone() for key, value in network.module.state_dict().items()}
    found = contributions(network, images)
    assert all(part.zero.abs().sum() > 0 for part in found.layers.values())
    assert all(torch.equal(state[key], value) for key, value in network.module.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in network.module.parameters())
    assert not any(child._forward_hooks for child in network.module.modules())


def test_what_does_not_reach_the_logit_contributes_nothing(case):
    network, images = case("chain")
    with torch.no_grad():
        network.module.head.weight[:, 5] = 0
    found = contributions(network, images).layers["conv2"].zero
    assert not found[:, 5].any()
    assert found[:, 4].any()


def test_a_pruned_and_repaired_network_can_be_ranked_again(case, plan_for):
    """Its padded shortcuts have become modules of secateur's own, with fills that are not zero."""
    from secateur.prune.repair.repair import repair
    from secateur.prune.surgery import cut

    network, images = case("padded")
    pruned, _ = repair(network, cut(network, plan_for(network, round_to=1)), images, "mean")
    with torch.no_grad():
        pruned.module.linear.bias.zero_()
    found = contributions(pruned, images)
    last = found.layers["linear"]
    with torch.no_grad():
        logits = pruned.logits(images.pixels())
    wanted = torch.zeros_like(logits).scatter(
        1, images.labels.unsqueeze(1), logits.gather(1, images.labels.unsqueeze(1))
    )
    assert close(last.zero, wanted)
    hidden = found.layers["layer3.0.conv1"]
    caught = {}
    module = pruned.module
    point = reading_points(module)["layer3.0.conv1"]
    handle = module.get_submodule(point[0]).register_forward_hook(lambda _, __, out: caught.__setitem__("map", out))
    chosen = module(images.pixels()).gather(1, images.labels.unsqueeze(1)).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(chosen, caught["map"])
    assert close(hidden.zero, (gradient * caught["map"]).mean((2, 3)).detach())


def test_control_flow_on_values_is_refused(network_of, noise_images):
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            return self.head(x.mean((2, 3))) if x.sum() > 0 else self.head(-x.mean((2, 3)))

    with pytest.raises(InputError, match="magnitude"):
        contributions(network_of(Choosy()), noise_images(4))


def test_another_baseline_is_refused(case):
    found = contributions(*case("chain", 4))
    with pytest.raises(ValueError, match="zero or mean"):
        found.layers["conv1"].alpha("median")


def gradient_and_activation(view, node, pixels, labels):
    """What a node gives, ``[n, C, H, W]``, and the gradient of the class logits to it."""
    caught = []
    hook = view.get_submodule(str(node.target)).register_forward_hook(lambda _, __, out: caught.append(out))
    chosen = view(pixels).gather(1, labels.unsqueeze(1)).sum()
    hook.remove()
    return torch.autograd.grad(chosen, caught[0])[0], caught[0].detach()


def agrees_with_captum(network, images, *, pooled=True):
    """captum's gradient times activation at every reading point; at the map before a global average, its Grad-CAM."""
    from captum.attr import LayerGradCam, LayerGradientXActivation

    found = contributions(network, images, batch_size=8)
    view = trace(network.module, network.example()).eval()
    pixels = images.preprocessing.normalise(images.pixels()).requires_grad_()
    points = reading_points(view)
    assert list(points) == list(found.layers)
    for layer, part in found.layers.items():
        (point,) = points[layer]
        wanted = LayerGradientXActivation(view, view.get_submodule(point)).attribute(pixels, target=images.labels)
        wanted = wanted.detach().flatten(2).mean(2) if wanted.dim() == 4 else wanted.detach()
        assert float((part.zero - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max()), layer
    if pooled:
        with torch.no_grad():
            values = run_graph(view, pixels, [node for node in view.graph.nodes if node.op == "call_module"])
        last = next(node for node in reversed(values) if values[node].dim() == 4 and values[node][0, 0].numel() > 1)
        gradient, activation = gradient_and_activation(view, last, pixels, images.labels)
        maps = (gradient * activation).sum(1, keepdim=True)
        peer = LayerGradCam(view, view.get_submodule(str(last.target)))
        picture = peer.attribute(pixels, target=images.labels, relu_attributions=False).detach()
        assert float((maps - picture).abs().max()) <= 1e-5 * float(maps.abs().max())
        for layer in [layer for layer, names in points.items() if last.target in names]:
            assert torch.allclose(found.layers[layer].zero.sum(1), picture.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["chain", "padded"])
def test_captum_agrees(case, name):
    agrees_with_captum(*case(name))


def test_captum_agrees_on_the_digits_network():
    network = load_model(ModelSettings())
    agrees_with_captum(network, load_images("digits", network.preprocessing).train.sample(20, 0))


def test_captum_agrees_on_real_weights(shared, noise_images):
    folder = shared / "models"
    settings = ModelSettings(f"{folder / 'resnet_cifar.py'}:resnet20", str(folder / "resnet20-cifar10-jpeg.pth"))
    network = load_model(settings)
    agrees_with_captum(network, noise_images(6, (3, 32, 32), 10, mean=0.45, std=0.25))


def test_captum_agrees_on_resnet18(large, network_of, noise_images):
    agrees_with_captum(network_of(large("resnet18"), (3, 64, 64), 5), noise_images(4, (3, 64, 64), 5))


def test_captum_agrees_on_vgg11(shake, network_of, noise_images):
    with torch.device("meta"):  # the memory of its own classifier is not needed
        module = models.vgg11_bn(num_classes=5, init_weights=False)
    module.classifier = nn.Sequential(nn.Linear(512 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 5))
    network = network_of(shake(module.to_empty(device="cpu")), (3, 64, 64), 5)
    agrees_with_captum(network, noise_images(4, (3, 64, 64), 5), pooled=False)


def test_normalised_images_are_what_the_network_sees(case, noise_images):
    network, images = case("chain")
    shifted = replace(images, preprocessing=replace(images.preprocessing, mean=(0.3,) * 3, std=(0.5,) * 3))
    by_pixels = contributions(network, shifted).layers["conv2"].zero
    module = network.module
    maps, logits = maps_of_chain(module, (images.pixels() - 0.3) / 0.5)
    (gradient,) = torch.autograd.grad(logits.gather(1, images.labels.unsqueeze(1)).sum(), maps["conv2"])
    assert close(by_pixels, (gradient * maps["conv2"]).mean((2, 3)).detach())


class Shared(nn.Module):
    """One activation with a parameter behind two layers; a scale of one number; a tensor changed in place."""

    def __init__(self, width=8):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, width, 3), nn.Linear(width, 4)
        self.act, self.scale = nn.PReLU(), nn.Parameter(torch.rand(1))

    def forward(self, x):
        x = self.act(self.second(self.act(self.first(x))))
        x.clamp_(max=1.5)
        return self.head(x.mean((2, 3))) * (1 - self.scale)


@pytest.mark.parametrize("width", [8, 5])
def test_a_module_shared_by_layers_does_not_mix_them(shake, network_of, noise_images, width):
    network, images = network_of(shake(Shared(width))), noise_images(6)
    found = contributions(network, images)
    module = network.module
    first = F.prelu(module.first(images.pixels()), module.act.weight)
    second = F.prelu(module.second(first), module.act.weight)
    logits = module.head(second.clamp(max=1.5).mean((2, 3))) * (1 - module.scale)
    chosen = logits.gather(1, images.labels.unsqueeze(1)).sum()
    for layer, activation in (("first", first), ("second", second)):
        (gradient,) = torch.autograd.grad(chosen, activation, retain_graph=True)
        assert close(found.layers[layer].zero, (gradient * activation).mean((2, 3)).detach())
        assert found.layers[layer].places == activation[0, 0].numel()
