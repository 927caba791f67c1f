import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.explain.evidence.guided import ClassDecisions, KernelDecisions, guided_backpropagation
from secateur.network.graph.feature_points import named_points
from secateur.network.graph.trace import trace


class OwnModules(nn.Module):
    """Every ReLU a module of its own, as captum needs it; a pool, a residual sum, hidden units."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.conv2, self.relu2 = nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()
        self.hidden, self.relu3, self.head = nn.Linear(6 * 36, 10), nn.ReLU(), nn.Linear(10, 4)

    def forward(self, x):
        x = self.pool(self.relu1(self.bn1(self.conv1(x))))
        x = self.relu2(self.conv2(x) + x)
        return self.head(self.relu3(self.hidden(x.flatten(1))))


class Functional(OwnModules):
    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 2)
        x = torch.relu(self.conv2(x) + x)
        return self.head(self.hidden(x.flatten(1)).relu())


class Reused(OwnModules):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.relu(self.conv2(x) + x)
        return self.head(self.relu(self.hidden(x.flatten(1))))


@pytest.fixture
def pixels():
    return torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def logits_of(count, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return ClassDecisions(torch.arange(count), torch.randint(4, (count,), generator=generator))


@pytest.fixture
def captum_guided():
    from captum.attr import GuidedBackprop

    def attribute(module, x, target):
        with pytest.warns(UserWarning, match="hooks"):
            return GuidedBackprop(module).attribute(x.clone().requires_grad_(), target=target).detach()

    return attribute


@pytest.mark.parametrize("kind", [OwnModules, Functional, Reused])
def test_captum_agrees_however_the_relus_are_written(kind, shake, pixels, captum_guided):
    decisions = logits_of(5)
    wanted = captum_guided(shake(OwnModules()), pixels, decisions.labels)
    got = guided_backpropagation(trace(shake(kind())), pixels, decisions, batch_size=2)
    assert wanted.abs().max() > 0.01
    assert torch.allclose(got, wanted, atol=1e-6)
    plain = pixels.clone().requires_grad_()
    chosen = shake(OwnModules())(plain)[torch.arange(5), decisions.labels]
    assert not torch.allclose(got, torch.autograd.grad(chosen.sum(), plain)[0], atol=1e-3)


def test_captum_agrees_on_kernels_at_places(shake, pixels, captum_guided):
    module = shake(OwnModules())
    view = trace(shake(Functional()))
    (point,) = named_points(view, pixels[:1], ["conv2"])
    images = torch.tensor([4, 0, 0, 2])
    kernels, rows, columns = torch.tensor([[5, 1, 1, 0], [0, 5, 2, 3], [1, 4, 4, 5]])
    got = guided_backpropagation(view, pixels, KernelDecisions(point.node, images, kernels, rows, columns))
    prefix = nn.Sequential(module.conv1, module.bn1, module.relu1, module.pool, module.conv2)
    targets = list(zip(kernels.tolist(), rows.tolist(), columns.tolist(), strict=True))
    assert torch.allclose(got, captum_guided(prefix, pixels[images], targets), atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "slope"),
    [
        (nn.ReLU(), lambda z: (z > 0).float()),
        (nn.ReLU6(), lambda z: ((z > 0) & (z < 6)).float()),
        (nn.SiLU(), lambda z: torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))),
        (nn.LeakyReLU(0.2), lambda z: torch.where(z > 0, 1.0, 0.2)),
    ],
)
def test_one_activation_by_hand(activation, slope, shake, pixels):
    """conv, activation, linear: the positive weights of the class go back through the activation's slope and the kernels."""
    module = shake(nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Flatten(), nn.Linear(400, 4)))
    with torch.no_grad():
        module[0].weight.mul_(5)  # some values beyond 6
    decisions = logits_of(5)
    got = guided_backpropagation(trace(module), pixels, decisions)
    with torch.no_grad():
        arriving = module[3].weight[decisions.labels].clamp(min=0).view(5, 4, 10, 10)
        wanted = F.conv_transpose2d(arriving * slope(module[0](pixels)), module[0].weight)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_a_view_depends_on_its_own_image_alone(tiny, pixels):
    view = trace(tiny("padded"), pixels[:1])
    together = guided_backpropagation(view, pixels, ClassDecisions(torch.tensor([3, 3, 1]), torch.tensor([0, 2, 2])))
    for row, (image, label) in enumerate([(3, 0), (3, 2), (1, 2)]):
        alone = ClassDecisions(torch.tensor([0]), torch.tensor([label]))
        assert torch.allclose(
            together[row : row + 1], guided_backpropagation(view, pixels[image : image + 1], alone), atol=1e-6
        )


def test_the_view_is_left_as_it_was(tiny, pixels):
    view = trace(tiny("gated"), pixels[:1]).train()
    before = pixels.clone()
    guided_backpropagation(view, pixels, logits_of(5))
    with pytest.raises(InputError):
        guided_backpropagation(view, pixels, ClassDecisions(torch.tensor([0]), torch.tensor([9])))
    assert view.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in view.parameters())
    assert not any(child._forward_hooks for child in view.modules())
    assert torch.equal(pixels, before)
    assert not pixels.requires_grad


def test_no_decisions_give_no_views(tiny, pixels):
    none = torch.empty(0, dtype=torch.long)
    assert guided_backpropagation(trace(tiny("chain")), pixels, ClassDecisions(none, none)).shape == (0, 3, 12, 12)


@pytest.mark.parametrize(
    ("layer", "place", "message"),
    [
        ("conv2", (5, 0, 0, 0), "no image 5 given: they count from 0 to 4"),
        ("conv2", (0, 16, 0, 0), "no kernel 16 of conv2"),
        ("conv2", (0, 0, 6, 0), "no row 6 of conv2"),
        ("conv2", (0, 0, 0, -1), "no column -1 of conv2"),
        ("head", (0, 0, 0, 0), "head gives no feature map"),
    ],
)
def test_what_is_not_there_is_named(tiny, pixels, layer, place, message):
    view = trace(tiny("chain"))
    node = next(node for node in view.graph.nodes if node.target == layer)
    with pytest.raises(InputError, match=message):
        guided_backpropagation(view, pixels, KernelDecisions(node, *(torch.tensor([index]) for index in place)))


def test_a_map_without_pixels_behind_it_is_refused(pixels):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.conv = nn.Parameter(torch.rand(1, 3, 4, 4)), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(self.map).mean((2, 3)) + x.mean((1, 2, 3)).unsqueeze(1)

    view = trace(Fixed())
    node = next(node for node in view.graph.nodes if node.target == "conv")
    first, zero = torch.tensor([0, 1]), torch.zeros(2, dtype=torch.long)
    with pytest.raises(InputError, match="of conv does not depend on the pixels"):
        guided_backpropagation(view, pixels, KernelDecisions(node, first, zero, zero, zero))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(tiny, pixels):
    by_device = []
    for device in ("cpu", "cuda"):
        view = trace(tiny("chain")).double().to(device)
        node = next(node for node in view.graph.nodes if node.target == "conv2")
        place = (torch.tensor([index]) for index in (2, 1, 0, 3))
        for decisions in (logits_of(5), KernelDecisions(node, *place)):
            found = guided_backpropagation(view, pixels.double().to(device), decisions)
            assert found.device.type == device
            by_device.append(found.cpu())
    assert torch.allclose(by_device[0], by_device[2])
    assert torch.allclose(by_device[1], by_device[3])
