"""What users bring that once went wrong: each goes through the whole line, or is refused in words."""

import textwrap
from dataclasses import replace

import onnxruntime
import pytest
import torch

from secateur import load_model, prune_and_export
from secateur.common.errors import InputError, UsageError
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model as load
from secateur.network.settings import ModelSettings
from secateur.pipeline.recipe.recipe import Recipe

HEADER = """
import torch
from torch import nn
from torch.nn import functional as F
INPUT_SHAPE = (3, 12, 12)
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
def data():
    noise = torch.randint(0, 256, (60, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pairs = [(image, index % 3) for index, image in enumerate(noise)]
    return {"train": pairs[:30], "val": pairs[30:45], "test": pairs[45:]}
def whole_numbers():
    return {name: [(image.long(), label) for image, label in pairs] for name, pairs in data().items()}
def negative():
    return {name: [(image, label - 1) for image, label in pairs] for name, pairs in data().items()}
def leaves():
    raise SystemExit(3)
def build():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def user_file(tmp_path):
    def write(text):
        path = tmp_path / "own.py"
        path.write_text(HEADER + textwrap.dedent(text))
        return path

    return write


def run(path, out, **options):
    recipe = Recipe().override(
        **{"model": f"{path}:build", "data": f"{path}:data", "macs": 0.6, "epochs": 1, "calibration": 24, **options}
    )
    recipe = replace(recipe, measurement=replace(recipe.measurement, batches=(1,)))
    return prune_and_export(recipe, out)


NETWORKS = {
    "one slope for all channels": """
        class Net(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Conv2d(3, 16, 3, padding=1), nn.PReLU(), nn.Conv2d(16, 8, 3), nn.PReLU(8),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    """,
    "shapes decide": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU())
                self.head = nn.Linear(8, 3)
            def forward(self, x):
                if x.shape[-1] > 8:
                    x = F.avg_pool2d(x, 2)
                return self.head(self.layers[1:](self.layers[0](x)).mean((2, 3)))
    """,
    "a convolution of its own kind": """
        class Standardised(nn.Conv2d):
            def forward(self, x):
                weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
                return self._conv_forward(x, weight, self.bias)
        class Net(nn.Sequential):
            def __init__(self):
                super().__init__(Standardised(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    """,
    "readers without a bias": """
        class Net(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Conv2d(3, 16, 3, bias=False), nn.GroupNorm(2, 16), nn.ReLU(),
                                 nn.Conv2d(16, 8, 3, bias=False), nn.GroupNorm(2, 8), nn.ReLU(),
                                 nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    """,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_goes_through_the_whole_line(name, user_file, tmp_path):
    result = run(user_file(NETWORKS[name]), tmp_path / "out")
    report = result.report
    assert report["ratios"]["macs"] >= 1 / 0.6
    small = load_model(str(tmp_path / "out"))
    assert report["pruned"]["parameters"] == sum(parameter.numel() for parameter in small.module.parameters())
    images = small.example(5)
    with torch.no_grad():
        expected = small.logits(images)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    found = torch.tensor(session.run(None, {"images": images.numpy()})[0])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_tied_weights_are_locked(user_file):
    path = user_file("""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Conv2d(3, 8, 3, padding=1)
                self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
                self.b.weight = self.a.weight
                self.last, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
            def forward(self, x):
                x = F.relu(self.b(F.relu(self.a(F.relu(self.first(x))))))
                return self.head(F.relu(self.last(x)).mean((2, 3)))
    """)
    network = load(f"{path}:build")
    groups = {group.name: group for group in find_groups(network.module, network.example())}
    assert "share their weights" in groups["a"].locked
    assert groups["last"].locked == ""


def test_attention_over_neighbouring_channels_is_locked(user_file):
    path = user_file("""
        class Net(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.LocalResponseNorm(3, alpha=1.0), nn.Conv2d(16, 8, 3),
                                 nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    """)
    network = load(f"{path}:build")
    groups = {group.name: group for group in find_groups(network.module, network.example())}
    assert "mixed" in groups["0"].locked
    assert groups["3"].locked == ""


REFUSED = {
    "lazy": (
        "class Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(nn.LazyConv2d(4, 3))\n",
        "no values",
    ),
    "rows": (
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(216, 3)\n"
        "    def forward(self, x):\n        return super().forward(x.reshape(-1, 216))\n",
        "rows",
    ),
    "script": (
        "def Net():\n    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(432, 3)))\n",
        "TorchScript",
    ),
    "resize": ("RESIZE = '256'\ndef Net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(432, 3))\n", "RESIZE"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_used_are_refused_in_words(name, user_file):
    text, words = REFUSED[name]
    path = user_file(text)
    with pytest.raises(InputError, match=words) as caught:
        load(f"{path}:build")
    assert "\n" not in str(caught.value)


PLAIN = "def Net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 3))\n"


@pytest.mark.parametrize(
    ("function", "words"), [("whole_numbers", "int64"), ("negative", "start from 0"), ("leaves", "SystemExit")]
)
def test_data_that_cannot_be_used_are_refused_in_words(function, words, user_file, tmp_path):
    path = user_file(PLAIN)
    with pytest.raises(InputError, match=words):
        run(path, tmp_path / "out", data=f"{path}:{function}")
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "imagenet1k_typo.pth", "default"])
def test_names_of_torchvision_weights_mean_nothing_to_other_models(name, user_file):
    for model in (f"{user_file(PLAIN)}:build", "digits"):
        with pytest.raises(InputError, match="do not exist"):
            load(ModelSettings(model=model, weights=name))


def test_a_seed_beyond_64_bits_is_a_usage_error():
    with pytest.raises(UsageError, match="seed"):
        Recipe(seed=2**70)
