import importlib.util

import pytest
import torch
from torchvision import models

from secateur.common.errors import InputError
from secateur.network.hooks import pick_logits
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings


@pytest.fixture
def user_file(tmp_path):
    def write(
        body, shape="INPUT_SHAPE = (3, 8, 8)", normalisation='NORMALISATION = {"mean": (0.5,) * 3, "std": (0.25,) * 3}'
    ):
        path = tmp_path / "mine.py"
        path.write_text(f"import torch\nfrom torch import nn\n{shape}\n{normalisation}\n{body}\n")
        return path

    return write


SMALL = """
def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""


def test_a_factory_gives_its_network_and_declarations(networks_file, tiny, tmp_path):
    source = tiny("padded", 4)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = load_model(f"{networks_file}:padded", str(tmp_path / "w.pth"))
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network.logits(x), source(x))
    assert network.input_shape == (3, 12, 12)
    assert network.preprocessing.mean == (0.5, 0.4, 0.3)
    assert network.preprocessing.std == (0.25, 0.2, 0.3)


def test_a_torchvision_name_with_a_file_takes_its_class_count_and_declarations(tmp_path, large):
    source = large("resnet18")
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = load_model("resnet18", str(tmp_path / "w.pth"))
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(network.logits(x), source(x))
    assert network.input_shape == (3, 224, 224)
    assert network.preprocessing.mean == (0.485, 0.456, 0.406)
    assert network.preprocessing.resize == 256
    assert network.class_names == ()


def test_settings_come_before_what_the_file_declares(user_file):
    path = user_file(SMALL)
    settings = ModelSettings(model=f"{path}:build", input_shape=(3, 16, 10), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    found = load_model(settings).preprocessing
    assert (found.input_shape, found.mean, found.std) == ((3, 16, 10), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"shape": ""}, ("INPUT_SHAPE", "--input-shape")), ({"normalisation": ""}, ("NORMALISATION", "--mean", "--std"))],
)
def test_what_is_not_declared_is_asked_for(user_file, options, words):
    path = user_file(SMALL, **options)
    with pytest.raises(InputError) as caught:
        load_model(f"{path}:build")
    assert all(word in str(caught.value) for word in words)
    given = ModelSettings(model=f"{path}:build", input_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3)
    assert load_model(given).input_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"normalisation": 'NORMALISATION = {"mean": (0.5,), "std": (0.2,)}'},
            "1 means and 1 standard deviations for 3",
        ),
        ({"normalisation": 'NORMALISATION = {"mean": (0.5,) * 3, "std": (0.0,) * 3}'}, "standard deviations positive"),
        ({"normalisation": 'NORMALISATION = {"mean": (float("nan"),) * 3, "std": (0.2,) * 3}'}, "finite"),
        ({"normalisation": "NORMALISATION = (0.5, 0.2)"}, "NORMALISATION must be"),
        ({"normalisation": 'NORMALISATION = {"mean": "abc", "std": (0.2,) * 3}'}, "not numeric"),
        ({"shape": "INPUT_SHAPE = (8, 8)"}, "not numeric"),
        ({"shape": "INPUT_SHAPE = (3, 2, 2)"}, "fails on an input of 3x2x2"),
        (
            {"shape": "INPUT_SHAPE = (1, 8, 8)", "normalisation": 'NORMALISATION = {"mean": (0.5,), "std": (0.2,)}'},
            "1x8x8",
        ),
    ],
)
def test_declarations_that_cannot_be(user_file, options, words):
    with pytest.raises(InputError, match=words):
        load_model(f"{user_file(SMALL, **options)}:build")


@pytest.mark.parametrize(
    ("body", "function", "words"),
    [
        (SMALL, "bild", "build"),
        ("def build():\n    return 5", "build", "returned int, not an nn.Module"),
        ("def build():\n    return nn.Linear", "build", "not an nn.Module"),
        ("def build():\n    raise KeyError('layer9')", "build", "KeyError.*layer9"),
        ("def build(size):\n    return nn.Linear(size, 2)", "build", "TypeError"),
        ("1 / 0", "build", "ZeroDivisionError"),
        (
            "class Net(nn.Module):\n    def forward(self, x):\n        raise ValueError('odd')\nbuild = Net",
            "build",
            "odd",
        ),
        ("build = nn.Identity", "build", "3x8x8"),
    ],
)
def test_factories_that_fail_are_explained(user_file, body, function, words):
    with pytest.raises(InputError, match=words):
        load_model(f"{user_file(body)}:{function}")


def test_a_missing_factory_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.py does not exist"):
        load_model(f"{tmp_path / 'gone.py'}:build")


@pytest.mark.parametrize(
    ("typo", "meant"), [("resnt18", "resnet18"), ("mobilnet_v2", "mobilenet_v2"), ("digit", "digits")]
)
def test_a_misspelt_name_brings_the_right_one(typo, meant):
    with pytest.raises(InputError, match=rf"Did you mean .*\b{meant}\b"):
        load_model(typo)


def test_misspelt_torchvision_weights_list_the_real_ones():
    with pytest.raises(InputError, match="IMAGENET1K_V1"):
        load_model("resnet18", "IMAGENET1K_V9")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_timm_missing_says_how_to_get_it():
    with pytest.raises(InputError, match=r"secateur\[timm\]"):
        load_model("timm:resnet10t")


def test_a_timm_network_with_a_file(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    source = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = load_model("timm:resnet10t", str(tmp_path / "w.pth"))
    x = network.example()
    with torch.no_grad():
        assert torch.equal(network.logits(x), source(x))
    assert network.input_shape == tuple(source.pretrained_cfg["input_size"])


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_auxiliary_heads_in_the_weights_do_no_harm(tmp_path, shake, name):
    source = shake(models.get_model(name, weights=None, init_weights=False, num_classes=5, aux_logits=True))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = load_model(name, str(tmp_path / "w.pth"))
    x = network.example(1)
    with torch.no_grad():
        assert torch.equal(network.logits(x), source(x))
        network.module.train()
        assert pick_logits(network.module(torch.cat([x, x]))).shape == (2, 5)
