"""Networks that answer differently each time are refused, with what makes them so."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.common.errors import InputError
from secateur.network.checks import check_network
from secateur.network.load import load_model
from secateur.network.loading.repeatability import check_repeats


class Always(nn.Module):
    """Dropout that is on in evaluation too, as for Monte Carlo estimates."""

    def __init__(self, p=0.3):
        super().__init__()
        self.p = p

    def forward(self, x):
        return F.dropout(x, self.p, True)


class Stubborn(nn.Dropout):
    """Dropout that does not let itself be switched off."""

    def train(self, mode=True):
        return super().train(True)


class TorchNoise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class NumpyNoise(nn.Module):
    def forward(self, x):
        return x * float(np.random.rand())


class Lottery(nn.Module):
    def forward(self, x):
        return x * (1 + random.randrange(1000))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = itertools.count()

    def forward(self, x):
        return x + next(self.calls)


class Net(nn.Module):
    def __init__(self, odd, own=None):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3), odd)
        self.head = nn.Linear(8, 4)
        self.own = own

    def forward(self, x):
        x = self.block(self.stem(x)).mean((2, 3))
        return self.head(self.own(x) if self.own else x)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (Always(), r"block\.1 \(Always\) draws random numbers \(bernoulli_, as dropout does\)"),
        (Stubborn(), r"block\.1 \(Stubborn\) draws random numbers \(bernoulli_, as dropout does\)"),
        (TorchNoise(), r"block\.1 \(TorchNoise\) draws random numbers \(randn_like\)"),
        (NumpyNoise(), r"block\.1 \(NumpyNoise\) gives other values for the same input"),
        (Lottery(), r"block\.1 \(Lottery\) gives other values for the same input"),
        (Counting(), r"block\.1 \(Counting\) gives other values for the same input"),
    ],
)
def test_the_module_is_named(network_of, odd, told):
    module = Net(odd)
    module.eval()
    with pytest.raises(InputError, match=rf"answers differently each time in evaluation mode .*{told}.*self\.training"):
        check_network(network_of(module))


def test_a_forward_without_a_module_of_its_own_is_named(network_of):
    module = Net(nn.Identity(), lambda x: F.dropout(x, 0.5)).eval()
    with pytest.raises(InputError, match=r"Net\.forward draws random numbers"):
        check_network(network_of(module))


def test_all_modules_are_named_but_no_more_than_three(network_of):
    module = Net(nn.Sequential(*(Always() for _ in range(5))))
    with pytest.raises(InputError, match=r"block\.1\.0 \(Always\).*block\.1\.1 .*block\.1\.2 .*and 2 more do"):
        check_network(network_of(module))


def test_dropout_that_rarely_drops_is_found():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), Always(0.02)).eval()
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    assert torch.equal(module(x), module(x)), "two calls that agree by chance"
    with pytest.raises(InputError, match=r"2 \(Always\)"):
        check_repeats(module, x)


def test_random_numbers_without_effect_are_fine(network_of):
    class Harmless(nn.Module):
        def forward(self, x):
            torch.rand(3)
            return x

    check_network(network_of(Net(Harmless())))


def test_a_network_that_draws_from_a_seed_of_its_own_is_fine(network_of):
    class Seeded(nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(1))

    check_network(network_of(Net(Seeded())))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.RReLU(), nn.Dropout2d(), nn.AlphaDropout()])
def test_what_is_off_in_evaluation_is_fine(network_of, layer):
    check_network(network_of(Net(layer)))


def test_the_generator_stays_where_it_was():
    module, before = Net(Always()).eval(), torch.get_rng_state()
    with pytest.raises(InputError):
        check_repeats(module, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_random_computation_of_weights_is_not_frozen(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\nfrom torch import nn\nINPUT_SHAPE = (3, 8, 8)\nNORMALISATION = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}\n"
        "class Noisy(nn.Module):\n    def forward(self, w):\n        return w + 0.1 * torch.randn_like(w)\n"
        "def build():\n    conv = nn.Conv2d(3, 4, 3)\n"
        "    nn.utils.parametrize.register_parametrization(conv, 'weight', Noisy())\n"
        "    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    with pytest.raises(InputError, match=r"0\.parametrizations\.weight\.0 \(Noisy\) draws random numbers"):
        load_model(f"{file}:build")
