import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.explain.baselines import kernel_rows
from secateur.explain.ranking import rank_kernels
from secateur.explain.scores import RankingTask


@pytest.fixture
def task(tiny, network_of, noise_images):
    def build(name, seed=0, count=9):
        return RankingTask(network_of(tiny(name)), noise_images(count), seed)

    return build


def kernels(module):
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            yield name, [row.flatten().tolist() for row in child.weight.detach()]


@pytest.mark.parametrize("name", ["chain", "grouped", "inverted", "dense"])
def test_magnitude(task, name):
    given = task(name)
    scores = rank_kernels(given, "magnitude")
    for layer, rows in kernels(given.network.module):
        wanted = [sum(abs(weight) for weight in row) for row in rows]
        assert scores.layers[layer].tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["chain", "grouped", "inverted"])
def test_fpgm(task, name):
    given = task(name)
    scores = rank_kernels(given, "fpgm")
    for layer, rows in kernels(given.network.module):
        wanted = [
            sum(sum((a - b) ** 2 for a, b in zip(row, other, strict=True)) ** 0.5 for other in rows) for row in rows
        ]
        assert scores.layers[layer].tolist() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["chain", "grouped", "dense"])
def test_lamp(task, name):
    given = task(name)
    scores = rank_kernels(given, "lamp")
    for layer, rows in kernels(given.network.module):
        squares = [sum(weight * weight for weight in row) for row in rows]
        wanted = [own / sum(other for other in squares if other >= own) for own in squares]
        assert scores.layers[layer].tolist() == pytest.approx(wanted, rel=1e-4)
        assert scores.layers[layer].max() == pytest.approx(1)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rows_of_a_transposed_convolution_are_what_each_output_channel_reads(groups):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 8, 3, groups=groups, bias=False)
    rows = kernel_rows(layer)
    assert rows.shape == (8, 4 // groups * 9)
    for channel in range(8):
        image = torch.randn(1, 4, 5, 5)
        readers = [group for group in range(groups) if channel // (8 // groups) == group]
        with torch.no_grad():
            inputs = image.unflatten(1, (groups, -1))[:, readers].flatten(1, 2)
            single = F.conv_transpose2d(inputs, rows[channel].float().view(4 // groups, 1, 3, 3))
            torch.testing.assert_close(layer(image)[:, channel : channel + 1], single)


def test_lamp_of_a_layer_of_zeros_is_finite(task):
    given = task("chain")
    with torch.no_grad():
        given.network.module.conv1.weight.zero_()
    assert rank_kernels(given, "lamp").layers["conv1"].tolist() == [0.0] * 8


def test_bn_scale(task):
    given = task("padded")
    scores = rank_kernels(given, "bn-scale")
    module = given.network.module
    with torch.no_grad():
        module.bn1.weight[2] = -0.75
    scores = rank_kernels(given, "bn-scale")
    assert set(scores.layers) == {name for name, child in module.named_modules() if isinstance(child, nn.Conv2d)}
    for layer, values in scores.layers.items():
        assert values.tolist() == [abs(v) for v in module.get_submodule(layer.replace("conv", "bn")).weight.tolist()]
    assert scores.layers["conv1"][2] == 0.75


def test_bn_scale_without_batchnorm_is_refused(task):
    with pytest.raises(InputError, match="bn-scale needs"):
        rank_kernels(task("dense"), "bn-scale")


def test_taylor_is_the_gradient_of_a_gate(task):
    """A gate of one behind BatchNorm and activation: its gradient, image by image, squared and averaged."""
    given = task("chain")
    module, images = given.network.module, given.images
    squares = {"conv1": torch.zeros(8), "conv2": torch.zeros(16)}
    for pixels, label in zip(images.pixels(), images.labels, strict=True):
        gates = {"conv1": torch.ones(8, requires_grad=True), "conv2": torch.ones(16, requires_grad=True)}
        x = F.relu(module.bn1(module.conv1(pixels.unsqueeze(0)))) * gates["conv1"].view(1, -1, 1, 1)
        x = F.relu(module.bn2(module.conv2(x))) * gates["conv2"].view(1, -1, 1, 1)
        loss = F.cross_entropy(module.head(x.mean((2, 3))), label.unsqueeze(0))
        for layer, gradient in zip(gates, torch.autograd.grad(loss, list(gates.values())), strict=True):
            squares[layer] += gradient.square()
    scores = rank_kernels(given, "taylor")
    for layer, total in squares.items():
        assert torch.allclose(scores.layers[layer], total / len(images), rtol=1e-4, atol=1e-9)


def test_taylor_is_the_slope_of_the_loss(task):
    """Finite differences in float64: the loss with a kernel's map scaled a little up and down."""
    given = task("inverted", count=1)
    module, images = given.network.module.double(), given.images
    bn = module.blocks[0].layers[7]
    step, wanted = 1e-5, []
    for channel in range(8):
        losses = []
        for sign in (1, -1):

            def scale(_, __, out, channel=channel, sign=sign):
                out = out.clone()
                out[:, channel] *= 1 + sign * step
                return out

            hook = bn.register_forward_hook(scale)
            with torch.no_grad():
                losses.append(float(F.cross_entropy(module(images.pixels().double()), images.labels)))
            hook.remove()
        wanted.append(((losses[0] - losses[1]) / (2 * step)) ** 2)
    module.float()
    got = rank_kernels(given, "taylor").layers["blocks.0.layers.6"]
    assert got.tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-9)


def test_random_is_seeded_and_differs_by_layer(task):
    first, second, other = (rank_kernels(task("padded", seed), "random") for seed in (1, 1, 2))
    assert all(torch.equal(first.layers[layer], second.layers[layer]) for layer in first.layers)
    assert not any(torch.equal(first.layers[layer], other.layers[layer]) for layer in first.layers)
    assert not torch.equal(first.layers["conv1"], first.layers["layer1.0.conv1"])
    pooled = torch.cat(list(first.layers.values()))
    assert 0 <= float(pooled.min()) <= float(pooled.max()) < 1
    assert abs(float(pooled.mean()) - 0.5) < 0.1


def test_random_does_not_depend_on_the_weights(tiny, network_of, noise_images):
    first, second = (rank_kernels(RankingTask(network_of(tiny("chain", s)), noise_images(2)), "random") for s in (0, 1))
    assert all(torch.equal(first.layers[layer], second.layers[layer]) for layer in first.layers)


def test_rankers_by_weights_need_no_traceable_forward(network_of, noise_images):
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3)) if x.sum() > 0 else self.conv(-x).mean((2, 3))

    given = RankingTask(network_of(Choosy()), noise_images(2))
    for method in ("magnitude", "fpgm", "lamp", "random"):
        assert len(rank_kernels(given, method).layers["conv"]) == 4


def test_the_kernels_of_a_transposed_convolution_are_its_outputs(network_of, noise_images):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.head = nn.ConvTranspose2d(3, 5, 2, 2), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(self.up(x).mean((2, 3)))

    module = Up()
    found = rank_kernels(RankingTask(network_of(module), noise_images(2)), "magnitude").layers["up"]
    wanted = [sum(module.up.weight[:, channel].abs().flatten().tolist()) for channel in range(5)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
