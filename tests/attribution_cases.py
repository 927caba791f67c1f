"""Networks that attribution methods are tested on, and what their attributions must sum to."""

import torch
from torch import nn
from torch.nn import functional as F

PATHS = ("conductance", "internal-influence", "integrated-gradients")
DELTAS = ("conductance", "integrated-gradients", "deep-lift")
ROUGH = {"conductance": 0.03, "integrated-gradients": 0.03, "deep-lift": 1e-4}  # steps approximate what a slope gives
FINE = {"conductance": 2e-3}  # captum's first and last step are not quite the ends of the path


class Residual(nn.Module):
    """A stem, one residual block with BatchNorm, a head; ``rest`` runs it from the layers' outputs that are given."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.inner, self.inner_norm = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.outer, self.outer_norm = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 4)

    def rest(self, x, **given):
        maps = {}
        maps["stem"] = given.get("stem", F.relu(self.stem(x)))
        maps["inner"] = given.get("inner", F.relu(self.inner_norm(self.inner(maps["stem"]))))
        maps["outer"] = given.get("outer", self.outer_norm(self.outer(maps["inner"])))
        maps["head"] = given.get("head", self.head(F.relu(maps["stem"] + maps["outer"]).mean((2, 3))))
        return maps

    def forward(self, x):
        return self.rest(x)["head"]


class Straight(nn.Module):
    """The same without the shortcut."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)
        self.second, self.hidden, self.head = nn.Conv2d(6, 5, 3), nn.Linear(45, 7), nn.Linear(7, 4)

    def rest(self, x, **given):
        maps = {}
        maps["first"] = given.get("first", F.relu(self.norm(self.first(x))))
        maps["second"] = given.get("second", F.relu(self.second(maps["first"])))
        maps["hidden"] = given.get("hidden", F.relu(self.hidden(maps["second"].flatten(1))))
        maps["head"] = given.get("head", self.head(maps["hidden"]))
        return maps

    def forward(self, x):
        return self.rest(x)["head"]


def summed(values):
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def change_of_logit(network, images):
    x = images.pixels()
    with torch.no_grad():
        change = network.logits(x) - network.logits(torch.zeros_like(x))
    return change.gather(1, images.labels.unsqueeze(1)).squeeze(1)


def near(got, wanted, share):
    return float((got - wanted).abs().max()) <= share * float(wanted.abs().max())


class Pooled(nn.Module):
    """Maxima right behind an activation, over windows that may overlap, at places that padding makes unlike each other."""

    def __init__(self, size, stride, padding, bias):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(6, 5, 3, padding=1, bias=bias)
        self.pool, self.last = nn.MaxPool2d(size, stride, padding), nn.AdaptiveMaxPool2d(2)
        self.head = nn.Linear(20, 4, bias=bias)

    def forward(self, x):
        return self.head(self.last(F.relu(self.second(self.pool(F.relu(self.first(x)))))).flatten(1))


WINDOWS = [(2, 2, 0), (3, 2, 0), (3, 1, 0), (3, 2, 1)]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 4)
        self.relus = self.make_relus()

    def make_relus(self):
        return [F.relu] * 3

    def forward(self, x):
        x = self.relus[0](self.first(x))
        x = self.relus[1](self.second(x) + x)
        return self.head(self.relus[2](self.third(x)).mean((2, 3)))


class OneEach(Functional):
    def make_relus(self):
        return nn.ModuleList([nn.ReLU(inplace=True) for _ in range(3)])


class Reused(Functional):
    def make_relus(self):
        return nn.ModuleList([nn.ReLU(inplace=True)] * 3)
