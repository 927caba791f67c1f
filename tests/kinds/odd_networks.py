"""Networks of kinds that once broke a measurement, a fit or a plan; each takes 12-pixel images and has four classes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def branch(width, hidden):
    return nn.Sequential(
        nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(),
        nn.Conv2d(hidden, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
    )  # fmt: skip


class Odd(nn.Module):
    """A stem, something between, and a head of four classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.build()
        self.head = nn.Linear(16, 4)

    def build(self):
        self.f, self.g, self.h = branch(16, 24), branch(16, 24), branch(16, 24)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.stem(x)).mean((2, 3)))


class Parallel(Odd):
    def between(self, x):
        x = x + self.h(x)
        return F.relu(self.f(x) + self.g(x))


class ChannelsLast(Odd):
    def build(self):
        self.one, self.two = nn.Linear(16, 40), nn.Linear(40, 16)

    def between(self, x):
        return x + self.two(F.gelu(self.one(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class GlobalContext(Odd):
    def build(self):
        self.one, self.two = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 16, 1)
        self.three, self.four = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 1, 3, padding=1)

    def between(self, x):
        x = x + self.two(F.relu(self.one(x.mean((2, 3), keepdim=True))))
        return x + self.four(F.relu(self.three(x)))


class InPlace(Odd):
    def between(self, x):
        y = self.f(x)
        x = x.mul_(0.5)
        x = F.relu(y + x)
        return F.relu(self.g(x) + x)


class Plain(InPlace):
    def between(self, x):
        y = self.f(x)
        x = x * 0.5
        x = F.relu(y + x)
        return F.relu(self.g(x) + x)


class Dropping(Odd):
    def build(self):
        super().build()
        self.path, self.drop = nn.Identity(), nn.Dropout(0.2)

    def between(self, x):
        x = x + self.drop(self.path(self.f(x)))
        return x + self.path(self.g(x))


class PartlyAdded(Odd):
    """RexNet's: blocks add their input to some of the channels that they make."""

    def build(self):
        self.wide, self.wider = nn.Conv2d(16, 20, 3, padding=1), nn.Conv2d(20, 24, 3, padding=1)
        self.narrow = nn.Conv2d(24, 16, 3, padding=1)

    def between(self, x):
        for block in (self.wide, self.wider):
            made, width = block(x), x.shape[1]
            x = F.relu(torch.cat([made[:, :width] + x, made[:, width:]], 1))
        return self.narrow(x)


class Halves(Odd):
    """MixNet's: two layers make halves that a depthwise one takes together and two others take apart."""

    def build(self):
        self.left, self.right = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.one, self.two = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1)

    def between(self, x):
        x = F.relu(self.depthwise(torch.cat([self.left(x), self.right(x)], 1)))
        one, two = torch.split(x, [12, 12], 1)
        return torch.cat([self.one(one), self.two(two)], 1)
