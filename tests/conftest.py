"""Fixtures that several files use: real files from the shared folder, tiny seeded networks, images of noise."""

import collections
import contextlib
import copy
import dataclasses
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import models

import networks as tiny_networks
from browser import chromium, started
from secateur.common.progress import Observer
from secateur.explain.unit_scores import UnitScores
from secateur.network.channels.follow import find_groups
from secateur.network.images.images import images_from_tensor
from secateur.network.images.pictures import Preprocessing
from secateur.network.network import Network, Source
from secateur.pipeline.stages.planning import Round, plan_stage
from secateur.pipeline.stages.ranking import channels_of, explain_stage, with_sensitivity
from secateur.pipeline.stages.store import StageStore
from secateur.prune.cost import measure_cost
from secateur.prune.planning import plan_pruning
from secateur.prune.settings import BudgetSettings

TESTS = Path(__file__).resolve().parent
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not before Python 3.11.4


@pytest.fixture(scope="session", autouse=True)
def brief_timing():
    """Latency in as few rounds as there may be: the figures are not what these tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.export.measure.latency.SECONDS", 0.05)
        patch.setattr("secateur.export.measure.latency.LONGER", 1.0)
        yield


@pytest.fixture(scope="session")
def shared():
    folder = Path(os.environ.get("SECATEUR_SHARED", TESTS.parents[1] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the real files are not at {folder}; set SECATEUR_SHARED")
    return folder


@pytest.fixture(scope="session")
def cifar(shared, tmp_path_factory):
    """40 training and 20 test images a class of CIFAR-10 as JPEG files, in ImageFolder form."""
    archive = shared / "data" / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    small, counts = tmp_path_factory.mktemp("cifar"), collections.Counter()
    with tarfile.open(archive, "r|xz") as file:
        for member in file:
            split, _, name = member.name.rpartition("/")[0].partition("/")
            if member.isfile() and counts[split, name] < {"train": 40, "test": 20}.get(split, 0):
                counts[split, name] += 1
                file.extract(member, small, **SAFELY)
    return small


class _Recorder(Observer):
    def __init__(self):
        self.told, self.skips, self.started = [], [], []

    def say(self, text):
        self.told.append(text)

    def skipped(self, name):
        self.skips.append(name)

    def stage(self, name):
        self.started.append(name)
        return super().stage(name)


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """Runs single stages of the pipeline: ``explain(inputs)`` and ``plan(inputs, scores)``."""

    def store():
        return StageStore(tmp_path_factory.mktemp("stages"))

    def explain(inputs):
        return store().run(explain_stage(inputs, channels_of(inputs.network, "")))

    def plan(inputs, scores):
        channels, own = channels_of(inputs.network, ""), store()
        ranked = with_sensitivity(inputs, channels, scores, "", own)
        return own.run(plan_stage(inputs, channels, inputs.recipe.budget, Round(1, ranked)))

    return SimpleNamespace(explain=explain, plan=plan)


@pytest.fixture(scope="session")
def recorder():
    """Makes observers that remember what they were told, which stages were started and which were there already."""
    return _Recorder


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that opens files as pages, see ``browser.py``."""
    if chromium() is None:
        pytest.skip("no Chromium on this machine")
    with started() as running:
        yield running


@pytest.fixture(scope="session")
def networks_file():
    """The file of tiny networks, to be named in ``--model FILE:FUNCTION``."""
    return Path(tiny_networks.__file__)


@pytest.fixture(scope="session")
def networks():
    """The classes in that file."""
    return tiny_networks


@pytest.fixture(scope="session")
def shake():
    """Give every BatchNorm and bias values of a trained network's kind, seeded; the module comes back in eval mode."""

    def apply(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for child in module.modules():
                if isinstance(child, nn.BatchNorm2d | nn.BatchNorm1d):
                    if child.affine:
                        child.weight.uniform_(0.5, 1.5, generator=generator)
                        child.bias.normal_(0.1, 0.3, generator=generator)
                    if child.track_running_stats:
                        child.running_mean.normal_(0, 0.2, generator=generator)
                        child.running_var.uniform_(0.5, 1.5, generator=generator)
                elif isinstance(child, nn.Conv2d | nn.Linear):
                    fan = child.weight[0].numel()
                    child.weight.normal_(0, (2 / fan) ** 0.5, generator=generator)
                    if child.bias is not None:
                        child.bias.normal_(0, 0.3, generator=generator)
        return module.eval()

    return apply


@pytest.fixture(scope="session")
def tiny(networks, shake):
    """A tiny network by name, seeded."""

    def build(name, seed=0):
        return shake(getattr(networks, name)(), seed)

    return build


@pytest.fixture(scope="session")
def network_of():
    """A Network around a module, whose images are normalised to themselves."""

    def build(module, shape=(3, 12, 12), classes=4):
        channels = shape[0]
        preprocessing = Preprocessing(shape, (0.0,) * channels, (1.0,) * channels)
        names = tuple(f"class {index}" for index in range(classes))
        return Network(module.eval(), preprocessing, names, Source("test"))

    return build


@pytest.fixture(scope="session")
def noise_images():
    """Seeded noise in [0, 1] with labels; neighbouring pixels are alike and classes have colours of their own."""

    def build(count, shape=(3, 12, 12), classes=4, seed=0, mean=0.0, std=1.0):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, classes, (count,), generator=generator)
        tint = torch.rand(classes, shape[0], 1, 1, generator=generator)[labels]
        pixels = 0.5 * torch.rand(count, *shape, generator=generator) + 0.5 * tint
        preprocessing = Preprocessing(shape, (mean,) * shape[0], (std,) * shape[0])
        return images_from_tensor(pixels, labels, preprocessing)

    return build


@pytest.fixture(scope="session")
def spread():
    """Set the head so that the class scores have mean 0 and deviation 3 over the images; three labels in four follow them."""

    def apply(network, images):
        head = [child for child in network.module.modules() if isinstance(child, nn.Linear)][-1]
        x = images.preprocessing.normalise(images.pixels())
        with torch.no_grad():
            logits = network.logits(x)
            scale = 3 / logits.std(0)
            head.bias.copy_((head.bias - logits.mean(0)) * scale)
            head.weight.mul_(scale.unsqueeze(1))
            predicted = network.logits(x).argmax(1)
        labels = torch.where(torch.arange(len(predicted)) % 4 == 3, images.labels, predicted)
        return network, dataclasses.replace(images, labels=labels)

    return apply


def _small_vgg():
    """torchvision's VGG code at a width whose classifier does not fill the memory."""
    from torchvision.models.vgg import VGG, make_layers

    module = VGG(make_layers([16, "M", 24, 24, "M", 16, "M"], batch_norm=True), num_classes=5, init_weights=False)
    module.classifier = nn.Sequential(
        nn.Linear(16 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 24), nn.ReLU(True), nn.Linear(24, 5)
    )
    return module


_LARGE = {
    "resnet18": lambda: models.resnet18(num_classes=5),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=5),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=5),
    "densenet121": lambda: models.densenet121(num_classes=5),
    "resnext": lambda: models.ResNet(
        models.resnet.Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=16, num_classes=5
    ),
    "efficientnet_b0": lambda: models.efficientnet_b0(num_classes=5),
    "vgg": _small_vgg,
}


@pytest.fixture(scope="session")
def large(shake):
    """A torchvision network by name with five classes, seeded; its input is 3x32x32."""

    def build(name, seed=0):
        torch.manual_seed(seed)
        return shake(_LARGE[name](), seed)

    return build


@pytest.fixture(scope="session")
def random_units():
    """Seeded units to remove from every open group: at least one goes, at least one stays."""

    def draw(groups, seed=0, share=0.4):
        generator = torch.Generator().manual_seed(seed)
        removed = {}
        for group in groups:
            if not group.locked:
                count = min(group.units - 1, max(1, round(share * group.units)))
                removed[group.name] = torch.randperm(group.units, generator=generator)[:count].tolist()
        return removed

    return draw


@pytest.fixture(scope="session")
def masked():
    """The network with the input channels of each removed unit's readers set to zero, by hooks of its own."""

    @contextlib.contextmanager
    def masking(module, groups, removed):
        pads = [name for name, child in module.named_modules() if type(child).__name__ == "Shortcut"]
        wanted: dict[str, set[int]] = {}
        for group in groups:
            for member in group.members:
                if member.side == "in" and group.name in removed:
                    channels = [channel for unit in removed[group.name] for channel in member.channels[unit]]
                    wanted.setdefault(member.layer, set()).update(channels)
        pad_readers = list(dict.fromkeys(m.layer for g in groups for m in g.members if m.kind == "pad"))
        renamed = dict(zip(pad_readers, pads, strict=True))
        handles = []
        for name, channels in wanted.items():
            layer = module.get_submodule(renamed.get(name, name))

            def zero(layer, inputs, channels=tuple(channels)):
                x = inputs[0].clone()
                if isinstance(layer, nn.Linear):
                    x[..., list(channels)] = 0
                else:
                    x[:, list(channels)] = 0
                return (x, *inputs[1:])

            handles.append(layer.register_forward_pre_hook(zero))
        try:
            yield module
        finally:
            for handle in handles:
                handle.remove()

    return masking


@pytest.fixture(scope="session")
def in_double():
    """Class scores in float64 of a float32 module, which stays as it is."""

    def run(module, x):
        with torch.no_grad():
            return copy.deepcopy(module).double().eval()(x.double())

    return run


@pytest.fixture(scope="session")
def plan_for():
    """A plan for a network with seeded random scores: what decides which units go does not matter to most tests."""

    def build(network, fraction=0.5, resource="macs", seed=0, round_to="auto"):
        groups = find_groups(network.module, network.example(2))
        generator = torch.Generator().manual_seed(seed)
        scores = {
            group.name: UnitScores("random", torch.rand(group.units, generator=generator, dtype=torch.float64), ())
            for group in groups
            if not group.locked
        }
        return plan_pruning(
            groups, scores, measure_cost(network), BudgetSettings(**{resource: fraction}, round_to=round_to)
        )

    return build


@pytest.fixture(scope="session")
def equal():
    """Whether two modules have the same tensors by name and the same class scores, bit for bit."""

    def compare(first, second):
        states = first.state_dict(), second.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert torch.equal(first(x), second(x))
        return True

    return compare
