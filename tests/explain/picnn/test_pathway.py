import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from secateur.common.errors import InputError
from secateur.explain.picnn.pathway import Pathway, PathwayScores
from secateur.explain.settings import PicnnSettings
from secateur.network.digits import DigitsNetwork
from secateur.network.images.digits_images import load_digits_splits
from secateur.network.load import load_model


@pytest.fixture(scope="module")
def pathway(tiny, network_of):
    return Pathway(network_of(tiny("Padded")), PicnnSettings(), seed=1).eval()


def test_all_filters_in_every_cluster_are_the_network_itself(pathway):
    whole = copy.deepcopy(pathway)
    with torch.no_grad():
        x = torch.randn(6, 3, 12, 12)
        features, beside = whole.parts.trunk(x)
        scores = whole.parts.head(features, beside)
        whole.assignment.training_mask = lambda classes: torch.ones(len(classes), 32)
        assert torch.equal(whole(x).cluster_scores, scores)
        whole.assignment.training_mask = lambda classes: torch.zeros(len(classes), 32)
        nothing = whole(x).cluster_scores
    assert torch.allclose(nothing, nothing[:1].expand(6, -1)), "with no filter left every image looks the same"


def test_pseudo_labels_are_drawn_from_the_predictions(pathway):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(2)).expand(4000, -1, -1, -1)
    with torch.no_grad():
        output = pathway(x)
    shares = torch.bincount(output.clusters_of, minlength=4) / 4000
    wanted = output.scores[0].softmax(0)
    assert torch.allclose(shares, wanted, atol=4 * float((wanted * (1 - wanted) / 4000).sqrt().max()))


def test_the_loss_is_the_papers(pathway):
    torch.manual_seed(3)
    x, labels = torch.randn(5, 3, 12, 12), torch.tensor([0, 1, 2, 3, 0])
    with torch.no_grad():
        output = pathway(x)
        expected = F.cross_entropy(output.scores, labels) + 2 * F.cross_entropy(output.cluster_scores, labels)
        assert float(pathway.objective()(output, x, labels)) == pytest.approx(float(expected), rel=1e-6)


def test_the_codes_loss_counts_right_pseudo_labels_only(pathway):
    scores = torch.randn(4, 4)
    output = PathwayScores(scores, scores, torch.tensor([0, 1, 2, 3]))
    labels = torch.tensor([0, 0, 2, 0])
    path = copy.deepcopy(pathway)
    path.settings = replace(path.settings, loss_over="right")
    expected = F.cross_entropy(scores[[0, 2]], labels[[0, 2]])
    assert float(path.interpretation_loss(output, labels)) == pytest.approx(float(expected), rel=1e-6)
    none = PathwayScores(scores, scores, torch.tensor([1, 1, 1, 1]))
    assert float(path.interpretation_loss(none, labels)) == 0


def test_gradients_reach_the_matrix_the_trunk_and_the_head(pathway):
    path = copy.deepcopy(pathway).train()
    torch.manual_seed(0)
    x, labels = torch.randn(8, 3, 12, 12), torch.arange(8) % 4
    output = path(x)
    path.interpretation_loss(output, labels).backward()
    for parameter in (path.assignment.correspondence, path.parts._trunk.conv1.weight, path.parts._head.linear.weight):
        assert float(parameter.grad.abs().sum()) > 0


class NormedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.hidden = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.hidden(torch.relu(self.conv(x)).mean((2, 3))))))


def test_masked_features_do_not_move_the_running_averages_of_a_head(network_of):
    network = network_of(NormedHead())
    plain, both = (Pathway(network, PicnnSettings(masks=masks)).train() for masks in ("std", "bernoulli"))
    x = torch.randn(16, 3, 12, 12)
    plain(x), both(x)
    first, second = plain.parts.whole_state(), both.parts.whole_state()
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(first[name], second[name])


def interpretation_loss_on_new_images(labels_from, permuted, epochs=16):
    """After training the digits from scratch; ``permuted``: with labels that no image tells anything of."""
    network = load_model("digits")
    splits = load_digits_splits(network.preprocessing)
    parts = [splits.train, splits.validation]
    if permuted:
        generator = torch.Generator().manual_seed(1)
        parts = [replace(part, labels=part.labels[torch.randperm(len(part), generator=generator)]) for part in parts]
    torch.manual_seed(0)
    path = Pathway(replace(network, module=DigitsNetwork().eval()), PicnnSettings(labels=labels_from)).train()
    optimizer = torch.optim.Adam(
        [{"params": path.parts.parameters()}, {"params": path.assignment.parameters(), "lr": 0.1}], lr=1e-3
    )
    for _ in range(epochs):
        for batch, labels in parts[0].batches(64):
            output = path(batch, path.classes_for(labels))
            optimizer.zero_grad()
            path.objective()(output, batch, labels).backward()
            optimizer.step()
    images, labels = next(parts[1].batches(360))
    with torch.no_grad():
        return float(path.interpretation_loss(path.eval()(images, path.classes_for(labels)), labels))


@pytest.mark.long
def test_with_the_label_itself_the_interpretation_loss_collapses():
    """Figure 4. The cluster tells the label, so y2 need not look at the image. That shows at its clearest where images tell
    nothing of labels: with the true label the loss of new images collapses all the same, with a pseudo-label it is no better
    than chance, ln 10."""
    assert interpretation_loss_on_new_images("true", permuted=True) < 0.5 * math.log(10)
    assert interpretation_loss_on_new_images("pseudo", permuted=True) > math.log(10)
    leaking, honest = (interpretation_loss_on_new_images(one, permuted=False) for one in ("true", "pseudo"))
    assert leaking < 0.5 * honest, "on real labels it runs ahead of what the images tell"


FAMILIES = {
    "alexnet": 64, "vgg11": 64, "resnet18": 32, "densenet121": 32, "mobilenet_v2": 32, "efficientnet_b0": 32,
    "squeezenet1_1": 64, "shufflenet_v2_x0_5": 32, "mnasnet0_5": 32, "googlenet": 64, "regnet_y_400mf": 32,
    "convnext_tiny": 32, "wide_resnet50_2": 32, "inception_v3": 96,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_any_torchvision_network_can_be_trained(network_of, name):
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name in ("alexnet", "vgg11"):
        module = models.get_model(name, weights=None, num_classes=4)
        width = 256 if name == "alexnet" else 512
        side = 6 if name == "alexnet" else 7
        module.classifier = nn.Sequential(nn.Linear(width * side**2, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 4))
    else:
        module = models.get_model(name, weights=None, num_classes=4, **options)
    assert_trains(network_of(module, (3, FAMILIES[name], FAMILIES[name])))


def test_a_vision_transformer_can_be_trained(network_of):
    torch.manual_seed(0)
    module = models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=48, num_classes=4)
    nn.init.normal_(module.heads.head.weight)  # torchvision starts it at zero, where no gradient comes through
    assert_trains(network_of(module, (3, 64, 64)))


@pytest.mark.long
def test_vit_b_16_can_be_trained(network_of):
    torch.manual_seed(0)
    module = models.vit_b_16(num_classes=4)
    nn.init.normal_(module.heads.head.weight)
    network = network_of(module, (3, 224, 224))
    path = Pathway(network, PicnnSettings())
    assert path.point.channels == 768
    assert_trains(network, path)


def assert_trains(network, path=None):
    """One step changes the matrix and the first and the last layer, and what comes out is the network's own scores."""
    path = (path or Pathway(network, PicnnSettings())).train()
    x, labels = network.example(2), torch.tensor([1, 3])
    with torch.no_grad():
        assert torch.allclose(path.eval()(x).scores, network.logits(x), atol=1e-5)
    path.train()
    path.objective()(path(x), x, labels).backward()
    parameters = list(path.parts.parameters())
    for parameter in (path.assignment.correspondence, parameters[0], parameters[-1]):
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
        assert float(parameter.grad.abs().sum()) > 0


def test_networks_without_a_late_layer_say_so(network_of):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(432, 4), nn.Linear(432, 4)

        def forward(self, x):
            return self.first(x.flatten(1)) + self.second(x.flatten(1) ** 2)

    with pytest.raises(InputError, match=r"No late layer.*--target"):
        Pathway(network_of(TwoHeads()), PicnnSettings())
