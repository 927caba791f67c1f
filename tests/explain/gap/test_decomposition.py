import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from gap_by_hand import overlap
from secateur.common.errors import InputError
from secateur.explain.gap.decisions import ClassDecision, KernelDecision
from secateur.explain.gap.decomposition import Decomposer, decompose
from secateur.explain.gap.levels import DecompositionSettings
from secateur.explain.gap.near_duplicates import Selection
from secateur.explain.registry import get_ranker
from secateur.explain.scores import RankingTask


@pytest.fixture
def case(tiny, network_of, noise_images):
    network = network_of(tiny("padded", 1))
    images = noise_images(4, seed=2)
    inputs, labels = next(images.batches(4))
    return network, inputs, labels


def stage_maps(module, image, upto=3, start=None):
    """The maps of the stages of one image, written out; from the map of stage ``start`` on."""
    maps = {}
    x = F.relu(module.bn1(module.conv1(image[None]))) if start is None else start[1]
    for number in range(1 if start is None else start[0] + 1, upto + 1):
        x = getattr(module, f"layer{number}")(x)
        maps[number] = x
    return maps, module.linear(x.mean((2, 3))) if upto == 3 else None


def explain_by_hand(module, image, stage, decide, top, limit=0.9, threshold=0.5):
    """Eqs. 2 to 5 for one decision: a list of (kernel, row, column, alpha, share, map), and what was merged."""
    with torch.no_grad():
        maps, _ = stage_maps(module, image)
    source = maps[stage].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(decide(*stage_maps(module, image, start=(stage, source))), source)
    activation = (gradient * source.detach())[0]
    alpha = activation.mean((1, 2))
    kept, merged = [], {}
    for kernel in alpha.argsort(descending=True).tolist():
        if alpha[kernel] <= 0 or len(kept) == top:
            break
        same = [other for other in kept if overlap(activation[other], activation[kernel], threshold) > limit]
        if same:
            merged.setdefault(same[0], []).append(kernel)
        else:
            kept.append(kernel)
    found = []
    for kernel in kept:
        row, column = divmod(int(activation[kernel].argmax()), activation.shape[2])
        found.append(
            (kernel, row, column, float(alpha[kernel]), float(alpha[kernel] / alpha.abs().sum()), activation[kernel])
        )
    return found, merged


@pytest.mark.parametrize("top", [1, 3])
def test_three_stages_against_one_backward_pass_for_every_decision(case, top):
    network, inputs, labels = case
    module = network.module.eval()
    got = decompose(network, inputs, ClassDecision(labels), DecompositionSettings(selection=Selection(top=top)))
    assert [level.point.name for level in got.levels] == ["layer3", "layer2", "layer1"]
    with torch.no_grad():
        assert torch.allclose(got.decision, module(inputs).gather(1, labels[:, None])[:, 0], atol=1e-6)
    for image in range(len(inputs)):
        above = [(None, 1.0, lambda maps, logits, image=image: logits[0, labels[image]])]
        for level in got.levels:
            stage = int(level.point.name[-1])
            rows = (level.image == image).nonzero().flatten().tolist()
            wanted, below = [], []
            for number, (_, importance, decide) in enumerate(above):
                found, _ = explain_by_hand(module, inputs[image], stage, decide, top)
                for kernel, row, column, alpha, share, activation in found:
                    wanted.append((number, kernel, row, column, alpha, share, importance * share, activation))
                    value = lambda maps, _, k=kernel, r=row, c=column, s=stage: maps[s][0, k, r, c]  # noqa: E731
                    below.append((number, importance * share, value))
            assert len(rows) == len(wanted) > 0
            first = rows[0] if stage == 3 else int(level.parent[rows].min())
            for row, (number, kernel, y, x, alpha, share, importance, activation) in zip(rows, wanted, strict=True):
                if stage < 3:
                    assert int(level.parent[row]) - first == number
                assert (int(level.kernel[row]), int(level.row[row]), int(level.column[row])) == (kernel, y, x)
                assert float(level.alpha[row]) == pytest.approx(alpha, rel=1e-3, abs=1e-6)
                assert float(level.share[row]) == pytest.approx(share, rel=1e-3, abs=1e-6)
                assert float(level.importance[row]) == pytest.approx(importance, rel=1e-3, abs=1e-7)
                assert torch.allclose(level.maps[row], activation, atol=1e-5)
            above = below


def test_importance_is_passed_down_through_the_kept_decisions(case):
    network, inputs, labels = case
    module = network.module.eval()
    got = decompose(network, inputs, ClassDecision(labels))
    upper, lower = got.levels[0], got.levels[1]
    for image in range(len(inputs)):
        wanted = torch.zeros(lower.point.channels)
        for row in (upper.image == image).nonzero().flatten().tolist():
            kernel, y, x = int(upper.kernel[row]), int(upper.row[row]), int(upper.column[row])
            maps, _ = stage_maps(module, inputs[image])
            (gradient,) = torch.autograd.grad(maps[3][0, kernel, y, x], maps[2])
            alpha = (gradient * maps[2])[0].mean((1, 2)).detach()
            wanted += upper.importance[row] * alpha / alpha.abs().sum()
        assert torch.allclose(got.importance["layer2"][image], wanted, atol=1e-6)


def test_layers_between_are_credited_by_the_decisions_kept_above(case):
    network, inputs, labels = case
    got = decompose(network, inputs, ClassDecision(labels), DecompositionSettings(between=True))
    block, level = network.module.eval().layer3[0], got.levels[0]
    for image in range(len(inputs)):
        below = stage_maps(network.module, inputs[image])[0][2].detach()
        wanted = torch.zeros(32)
        for row in (level.image == image).nonzero().flatten().tolist():
            hidden = F.relu(block.bn1(block.conv1(below))).detach().requires_grad_()
            joined = F.relu(block.bn2(block.conv2(hidden)) + block.shortcut(below))
            (gradient,) = torch.autograd.grad(joined[0, level.kernel[row], level.row[row], level.column[row]], hidden)
            alpha = (gradient * hidden.detach())[0].mean((1, 2))
            wanted += level.importance[row] * alpha / alpha.abs().sum()
        assert torch.allclose(got.layer_importance["layer3.0.conv1"][image], wanted, atol=1e-6)
    assert set(got.importance) == {"layer1", "layer2", "layer3"}


def test_a_kernel_at_a_place_can_be_the_decision(case):
    network, inputs, _ = case
    module = network.module.eval()
    kernels, rows, columns = torch.tensor([3, 0, 7, 15]), torch.tensor([1, 2, 5, 0]), torch.tensor([0, 2, 4, 5])
    got = decompose(network, inputs, KernelDecision("layer2", kernels, rows, columns))
    assert [level.point.name for level in got.levels] == ["layer1"]
    for image in range(4):
        decide = lambda maps, _, i=image: maps[2][0, kernels[i], rows[i], columns[i]]  # noqa: E731
        found, _ = explain_by_hand(module, inputs[image], 1, decide, 3)
        mine = got.levels[0].image == image
        assert got.levels[0].kernel[mine].tolist() == [row[0] for row in found]
        maps, _ = stage_maps(module, inputs[image])
        assert float(got.decision[image]) == pytest.approx(float(decide(maps, None).detach()), abs=1e-6)


def test_the_saliency_is_the_weighted_sum_of_the_lowest_gradients(case):
    network, inputs, labels = case
    module = network.module.eval()
    got = decompose(network, inputs, ClassDecision(labels), DecompositionSettings(layers=("layer2",)))
    level = got.levels[0]
    wanted = torch.zeros_like(inputs)
    for row in range(len(level)):
        image = int(level.image[row])
        pixels = inputs[image].clone().requires_grad_()
        maps, _ = stage_maps(module, pixels)
        value = maps[2][0, level.kernel[row], level.row[row], level.column[row]]
        wanted[image] += level.importance[row] * torch.autograd.grad(value, pixels)[0]
    assert torch.allclose(got.saliency, wanted, atol=1e-6)


def test_the_predicted_class_is_decomposed_by_default(case):
    network, inputs, _ = case
    with torch.no_grad():
        assert torch.allclose(decompose(network, inputs).decision, network.logits(inputs).max(1).values, atol=1e-6)


def test_mean_activations_can_be_the_baseline(case):
    network, inputs, labels = case
    average = torch.rand(32)
    got = decompose(network, inputs, ClassDecision(labels), DecompositionSettings(averages={"layer3": average}))
    module = network.module.eval()
    maps = torch.cat([stage_maps(module, image)[0][3] for image in inputs]).detach()
    slope = module.linear.weight[labels].detach() / 9
    alpha = slope * (maps.mean((2, 3)) - average)
    assert torch.allclose(got.importance["layer3"], alpha / alpha.abs().sum(1, keepdim=True), atol=1e-5)


def test_averages_are_measured_where_the_points_and_layers_are(case, noise_images):
    network, _, _ = case
    images = noise_images(7, seed=8)
    decomposer = Decomposer(network, DecompositionSettings(between=True))
    decomposer.subtract_averages(images, 3)
    inputs, _ = next(images.batches(7))
    module = network.module
    with torch.no_grad():
        first = F.relu(module.bn1(module.conv1(inputs)))
        stage = module.layer2(module.layer1(first))
    assert torch.allclose(decomposer.settings.layer_averages["conv1"], first.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(decomposer.settings.averages["layer2"], stage.mean((0, 2, 3)), atol=1e-6)


def test_near_duplicates_are_merged_into_the_stronger(case):
    network, inputs, labels = case
    with torch.no_grad():  # kernel 5 of the last stage is kernel 3 again, a little stronger
        block, linear = network.module.layer3[0], network.module.linear
        block.conv2.weight[5] = block.conv2.weight[3]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(block.bn2, name)[5] = getattr(block.bn2, name)[3]
        linear.weight[:, 3], linear.weight[:, 5] = 3, 3.1
        block.bn2.bias[[3, 5]] = 1
    level = decompose(network, inputs, ClassDecision(labels), DecompositionSettings(layers=("layer3",))).levels[0]
    for image in range(len(inputs)):
        rows = (level.image == image).nonzero().flatten().tolist()
        kernels = level.kernel[rows].tolist()
        assert 5 in kernels
        assert 3 not in kernels
        assert 3 in level.merged[rows[kernels.index(5)]]


def test_only_the_most_important_decisions_of_an_image_are_kept(case):
    network, inputs, labels = case
    whole = decompose(network, inputs, ClassDecision(labels)).levels[1]
    some = decompose(network, inputs, ClassDecision(labels), DecompositionSettings(most=2))
    assert all((level.image == image).sum() <= 2 for level in some.levels for image in range(4))
    reference = decompose(network, inputs, ClassDecision(labels), DecompositionSettings(most=3)).levels[1]
    for image in range(4):
        best = whole.importance[whole.image == image].topk(3).values
        assert torch.allclose(
            reference.importance[reference.image == image].sort(descending=True).values, best, atol=1e-7
        )


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "densenet121", "mobilenet_v2"])
def test_known_networks_are_decomposed(name, network_of):
    torch.manual_seed(0)
    network = network_of(getattr(models, name)(num_classes=4).eval(), shape=(3, 64, 64))
    inputs = torch.randn(2, 3, 64, 64)
    settings = DecompositionSettings(between=True, most=4)
    got = decompose(network, inputs, None, settings)
    assert len(got.levels) == 5
    assert all(level.kept(2).sum() == len(level) for level in got.levels)
    assert torch.isfinite(got.saliency).all()
    assert all(torch.isfinite(part).all() for part in got.importance.values())


def test_bad_decisions_are_refused(case):
    network, inputs, labels = case
    zeros = torch.zeros(4, dtype=torch.int64)
    for decision, layers, message in (
        (ClassDecision(labels + 4), None, "class must be between 0 and 3 .got 4 to 7"),
        (ClassDecision(labels[:2]), None, "one number for each of the 4 images"),
        (KernelDecision("layer2", zeros + 16, zeros, zeros), None, "kernel must be between 0 and 15 .got 16"),
        (KernelDecision("layer2", zeros, zeros, zeros + 6), None, "layer2: column"),
        (KernelDecision("layer9", zeros, zeros, zeros), None, "no layer 'layer9'"),
        (KernelDecision("layer1", zeros, zeros, zeros), ("layer1", "layer2"), "before the decision. Name earlier"),
        (None, ("layer1", "linear"), "no feature map"),
    ):
        with pytest.raises(InputError, match=message):
            decompose(network, inputs, decision, DecompositionSettings(layers=layers))
    for wrong in ({"top": 0}, {"overlap": 0.0}, {"threshold": 1.0}):
        with pytest.raises(ValueError, match="must be"):
            Selection(**wrong)


def test_layers_side_by_side_are_no_chain(shake, network_of):
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

        def forward(self, x):
            return self.head((F.relu(self.left(x)) + F.relu(self.right(x))).mean((2, 3)))

    network = network_of(shake(Fork()))
    inputs = torch.randn(2, 3, 12, 12)
    with pytest.raises(InputError, match="left does not feed right"):
        decompose(network, inputs, None, DecompositionSettings(layers=("left", "right")))
    assert len(decompose(network, inputs, None, DecompositionSettings(layers=("left",))).levels[0]) > 0


def test_images_of_another_size_are_refused(case):
    network, _, _ = case
    with pytest.raises(InputError, match=r"takes images of 3x12x12 \(got 3x12x24\)"):
        decompose(network, torch.randn(1, 3, 12, 24))


def test_a_decision_that_nothing_supports_has_no_evidence(case):
    network, inputs, _ = case
    with torch.no_grad():
        network.module.linear.weight[2] = -network.module.linear.weight[2].abs()
    got = decompose(network, inputs, ClassDecision(torch.full((4,), 2)), DecompositionSettings(between=True))
    assert [len(level) for level in got.levels] == [0, 0, 0]
    assert not got.saliency.any()
    assert not got.layer_importance["conv1"].any()


class Dead(nn.Module):
    """A layer whose output nobody reads, a tensor changed in place, a convolution that is read as it is."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.aux = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        F.leaky_relu_(x, 0.01)
        self.aux(x)
        return self.head(F.relu(F.max_pool2d(self.second(x), 2)).mean((2, 3)))


def test_unread_layers_get_nothing_and_nothing_is_counted_twice(shake, network_of, noise_images):
    network, images = network_of(shake(Dead())), noise_images(5)
    inputs, labels = next(images.batches(5))
    settings = DecompositionSettings(layers=("second",), between=True)
    got = decompose(network, inputs, ClassDecision(labels), settings)
    with torch.no_grad():
        assert torch.allclose(got.decision, network.module(inputs).gather(1, labels[:, None])[:, 0], atol=1e-6)
    assert torch.allclose(got.importance["second"].abs().sum(1), torch.ones(5), atol=1e-5)
    assert torch.allclose(got.layer_importance["second"].abs().sum(1), torch.ones(5), atol=1e-5)
    for ranker in ("gap", "gap-hierarchical", "car"):
        scores = get_ranker(ranker).score(RankingTask(network, images))
        assert set(scores.layers) == {"first", "second", "aux", "head"}
        assert not scores.layers["aux"].any()
        assert scores.layers["first"].any()
