"""Lazy layers get their shapes from one forward pass and their values from the weights."""

import pytest
import torch
from torch import nn

from secateur.common.errors import InputError
from secateur.network.channels.follow import find_groups
from secateur.network.load import load_model
from secateur.network.settings import ModelSettings
from secateur.prune import surgery

FILE = """
import torch
from torch import nn

INPUT_SHAPE = (3, 12, 12)
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Net(nn.Module):
    def __init__(self, lazy):
        super().__init__()
        conv = (lambda _, *rest, **more: nn.LazyConv2d(*rest, **more)) if lazy else nn.Conv2d
        up = (lambda _, *rest, **more: nn.LazyConvTranspose2d(*rest, **more)) if lazy else nn.ConvTranspose2d
        norm = (lambda _: nn.LazyBatchNorm2d()) if lazy else nn.BatchNorm2d
        linear = (lambda _, *rest: nn.LazyLinear(*rest)) if lazy else nn.Linear
        self.stem = nn.Sequential(conv(3, 8, 3), norm(8), nn.ReLU())
        self.middle = nn.Sequential(conv(8, 16, 3, groups=4), norm(16), nn.ReLU(), nn.MaxPool2d(2))
        self.up = up(16, 6, 2, stride=2)
        self.hidden, self.head = linear(6 * 64, 20), linear(20, 4)
        self.extra = linear(20, 4)

    def forward(self, x):
        x = self.up(self.middle(self.stem(x))).relu()
        x = self.hidden(x.flatten(1)).relu()
        return self.head(x) + self.extra(x) if self.training else self.head(x)


lazy = lambda: Net(True)
plain = lambda: Net(False)


def loaded_here():
    module = Net(True)
    module.load_state_dict(torch.load("WEIGHTS"))
    return module
"""


@pytest.fixture
def file(tmp_path):
    """The factories' file; beside it the weights of the network with usual layers."""
    path, weights = tmp_path / "nets.py", tmp_path / "w.pth"
    path.write_text(FILE.replace("WEIGHTS", str(weights)))
    space = {}
    exec(path.read_text(), space)
    torch.manual_seed(1)
    module = space["plain"]()
    module.train()(torch.randn(16, 3, 12, 12))
    torch.save(module.state_dict(), weights)
    return path


def same(first, second):
    x = first.example(3, seed=2)
    with torch.no_grad():
        return torch.equal(first.logits(x), second.logits(x))


@pytest.mark.parametrize("form", ["given", "loaded in the factory"])
def test_the_network_is_the_one_with_usual_layers(file, form, plan_for, tmp_path):
    weights = str(file.with_name("w.pth"))
    plain = load_model(f"{file}:plain", weights)
    network = load_model(f"{file}:lazy", weights) if form == "given" else load_model(f"{file}:loaded_here")
    assert same(network, plain)
    assert str(network.module).replace("Lazy", "") == str(plain.module)
    groups = find_groups(network.module, network.example())
    assert groups == find_groups(plain.module, plain.example())
    plan = plan_for(network, round_to=1)
    small = surgery.cut(network, plan)
    assert same(small, surgery.cut(plain, plan))
    surgery.save(small, plan, tmp_path / "run")
    assert same(load_model(str(tmp_path / "run")), small)


def test_without_weights_the_lazy_layers_are_named(file):
    with pytest.raises(InputError, match=r"stem\.0 \(LazyConv2d\), stem\.1 .* more have no values.*--weights"):
        load_model(f"{file}:lazy")


def test_weights_trained_at_another_size_point_to_the_input_shape(file):
    weights = str(file.with_name("w.pth"))
    with pytest.raises(
        InputError, match=r"hidden\.weight is 20x384 in the file, 20x\d+ in the model.*24x24: --input-shape"
    ) as error:
        load_model(ModelSettings(f"{file}:lazy", weights, (3, 24, 24)))
    assert "class counts" not in str(error.value)


def test_a_shape_on_which_the_model_fails_is_told(file):
    with pytest.raises(InputError, match=r"lazy layers and fails on an input of 3x2x2 .*--input-shape"):
        load_model(ModelSettings(f"{file}:lazy", str(file.with_name("w.pth")), (3, 2, 2)))


def test_lazy_layers_that_nothing_calls_are_named(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        FILE + "\n\ndef idle():\n    module = Net(True)\n    module.idle = nn.LazyLinear(3)\n    return module\n"
    )
    torch.save({"idle.weight": torch.zeros(3, 2)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"idle \(LazyLinear\) are never called"):
        load_model(f"{file}:idle", str(tmp_path / "w.pth"))


def test_meta_tensors_are_still_refused(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(FILE + "\n\nmeta = lambda: Net(False).to('meta')\n")
    with pytest.raises(InputError, match=r"'stem\.0\.weight' has no values \(a meta tensor\)"):
        load_model(f"{file}:meta")


def test_networks_without_lazy_layers_are_not_run():
    from secateur.network.loading.lazy_layers import shape_lazy_layers

    class Untouched(nn.Module):
        def forward(self, x):
            raise AssertionError

    assert not shape_lazy_layers(Untouched(), torch.zeros(1, 3, 4, 4))
