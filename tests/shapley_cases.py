"""Small networks in which Shapley values between kernels have a closed form, each with the links that it must have."""

import torch
from torch import nn
from torch.nn import functional as F

from secateur.network.graph.topology import GATE, JOIN

SHAPE = (2, 7, 6)


class Net(nn.Module):
    """A network from its layers and a function that calls them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


class Scale(nn.Module):
    """A learned factor."""

    def __init__(self, *shape):
        super().__init__()
        self.factor = nn.Parameter(0.5 + torch.rand(*shape))

    def forward(self, x):
        return x * self.factor


def chain(second, before=F.relu, behind=None):
    """Two convolutions with something in between, and a head."""

    def run(m, x):
        y = m.b(before(m.a(x)))
        return m.head(F.relu(y if behind is None else m.behind(y)).mean((2, 3)))

    extra = {} if behind is None else {"behind": behind}
    return Net(
        run, a=nn.Conv2d(2, second.in_channels, 3, padding=1), b=second, **extra, head=nn.Linear(second.out_channels, 3)
    )


def joined(join, width=4, **more):
    """A stem ``a``, ``b`` on top of it, and what joins both."""
    layers = {"a": nn.Conv2d(2, width, 3, padding=1), "b": nn.Conv2d(width, width, 3, padding=1), **more}
    return Net(lambda m, x: m.head(join(m, F.relu(m.a(x)))), **layers, head=nn.Linear(width, 3))


def excited(m, y):
    return y * torch.sigmoid(m.excite(F.relu(m.squeeze(F.adaptive_avg_pool2d(y, 1)))))


def squeeze(width=4):
    return {"squeeze": nn.Conv2d(width, 3, 1), "excite": nn.Conv2d(3, width, 1)}


def shuffled(y):
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def halved(y, before, after):
    """Every second place, and channels of zeros around: a shortcut without parameters."""
    return F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, before, after))


def added_in_place(m, y):
    z = m.b(y)
    z += y
    return F.relu(z, inplace=True).mean((2, 3))


HEAD = {"head": ("b",)}
CASES = {
    "plain": (lambda: chain(nn.Conv2d(5, 4, 3)), {"b": ("a",), **HEAD}),
    "strided": (lambda: chain(nn.Conv2d(5, 4, (3, 2), stride=(2, 3), padding=(1, 0))), {"b": ("a",), **HEAD}),
    "zeros": (lambda: chain(nn.Conv2d(5, 4, 3, padding=(1, 2))), {"b": ("a",), **HEAD}),
    "reflect": (
        lambda: chain(nn.Conv2d(5, 4, 3, stride=2, padding=2, padding_mode="reflect")),
        {"b": ("a",), **HEAD},
    ),
    "circular": (lambda: chain(nn.Conv2d(5, 4, 5, padding=2, padding_mode="circular")), {"b": ("a",), **HEAD}),
    "replicate": (lambda: chain(nn.Conv2d(5, 4, 3, padding=(2, 1), padding_mode="replicate")), {"b": ("a",), **HEAD}),
    "same": (lambda: chain(nn.Conv2d(5, 4, (4, 3), padding="same", dilation=(1, 2))), {"b": ("a",), **HEAD}),
    "same, reflected": (
        lambda: chain(nn.Conv2d(5, 4, (2, 4), padding="same", padding_mode="reflect")),
        {"b": ("a",), **HEAD},
    ),
    "dilated": (lambda: chain(nn.Conv2d(5, 4, 3, padding=1, dilation=(2, 1))), {"b": ("a",), **HEAD}),
    "grouped": (lambda: chain(nn.Conv2d(6, 4, 3, padding=1, groups=2)), {"b": ("a",), **HEAD}),
    "depthwise": (lambda: chain(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4)), {"b": ("a",), **HEAD}),
    "normalised and pooled": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.n2(m.b(F.max_pool2d(F.relu(m.n1(m.a(x))), 2)))).flatten(1)),
            a=nn.Conv2d(2, 5, 3, padding=1), n1=nn.BatchNorm2d(5), b=nn.Conv2d(5, 2, 2, bias=False), n2=nn.BatchNorm2d(2),
            head=nn.Linear(2 * 2 * 2, 3),
        ),
        {"b": ("a",), **HEAD},
    ),
    "norm without a scale": (
        lambda: chain(nn.Conv2d(5, 4, 3), behind=nn.BatchNorm2d(4, affine=False)), {"b": ("a",), **HEAD},
    ),
    "dropout, ReLU6 and Hardswish": (
        lambda: chain(nn.Conv2d(5, 4, 3), before=lambda y: F.hardswish(F.dropout(F.relu6(y), training=False))),
        {"b": ("a",), **HEAD},
    ),
    "PReLU and average pool": (
        lambda: Net(
            lambda m, x: m.head(m.b(F.avg_pool2d(m.act(m.a(x)), 3, 2, 1)).mean((2, 3))),
            a=nn.Conv2d(2, 4, 3), act=nn.PReLU(4, 0.3), b=nn.Conv2d(4, 3, 2), head=nn.Linear(3, 3),
        ),
        {"b": ("a",), **HEAD},
    ),
    "an activation of two readings": (
        lambda: chain(nn.Conv2d(5, 4, 3), before=lambda y: y * torch.sigmoid(1.7 * y)), {"b": ("a",), **HEAD},
    ),
    "flattened": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.hidden(F.max_pool2d(F.relu(m.a(x)), 2).flatten(1)))),
            a=nn.Conv2d(2, 5, 3, padding=1), hidden=nn.Linear(5 * 9, 6), head=nn.Linear(6, 3),
        ),
        {"hidden": ("a",), "head": ("hidden",)},
    ),
    "norm behind a linear layer": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.norm(m.hidden(F.relu(m.a(x)).mean((2, 3)))))),
            a=nn.Conv2d(2, 5, 3), hidden=nn.Linear(5, 6), norm=nn.BatchNorm1d(6), head=nn.Linear(6, 3),
        ),
        {"hidden": ("a",), "head": ("hidden",)},
    ),
    "tokens": (
        lambda: Net(
            lambda m, x: m.head(F.gelu(m.hidden(F.relu(m.a(x)).flatten(2).transpose(1, 2))).mean(1)),
            a=nn.Conv2d(2, 5, 3, stride=2), hidden=nn.Linear(5, 6), head=nn.Linear(6, 3),
        ),
        {"hidden": ("a",), "head": ("hidden",)},
    ),
    "channels last": (
        lambda: Net(
            lambda m, x: m.head((F.gelu(m.up(F.relu(m.a(x)).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2).mean((2, 3))),
            a=nn.Conv2d(2, 5, 3, stride=2), up=nn.Linear(5, 6), head=nn.Linear(6, 3),
        ),
        {"up": ("a",), "head": ("up",)},
    ),
    "residual, ReLU behind": (
        lambda: joined(lambda m, y: F.relu(m.b(y) + y).mean((2, 3))),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "residual, in place": (
        lambda: joined(added_in_place), {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "residual, nothing behind": (
        lambda: joined(lambda m, y: (m.b(y) + y).mean((2, 3))),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "residual, GELU behind": (
        lambda: joined(lambda m, y: F.gelu(y + m.b(y)).mean((2, 3))),
        {"b": ("a",), JOIN: ("a", "b"), "head": (JOIN,)},
    ),
    "residual, norm and ReLU behind": (
        lambda: joined(lambda m, y: F.relu(m.n(m.b(y) + y)).mean((2, 3)), n=nn.BatchNorm2d(4)),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "residual of vectors, norm behind": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.n((lambda y: m.b(y) + y)(F.relu(m.a(x)).mean((2, 3)))))),
            a=nn.Conv2d(2, 4, 3), b=nn.Linear(4, 4), n=nn.BatchNorm1d(4), head=nn.Linear(4, 3),
        ),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "two residuals": (
        lambda: joined(
            lambda m, y: (lambda z: F.relu(m.c(z) + z).mean((2, 3)))(F.relu(m.b(y) + y)), c=nn.Conv2d(4, 4, 1),
        ),
        {"b": ("a",), JOIN: ("b", "a"), "c": (JOIN,), "join, call 2": ("c", JOIN), "head": ("join, call 2",)},
    ),
    "three branches": (
        lambda: joined(lambda m, y: F.relu(m.b(y) + m.c(y) + y).mean((2, 3)), width=4, c=nn.Conv2d(4, 4, 1)),
        {"b": ("a",), "c": ("a",), JOIN: ("b", "c"), "join, call 2": (JOIN, "a"), "head": ("join, call 2",)},
    ),
    "channels swapped and added": (
        lambda: joined(lambda m, y: F.relu(y + shuffled(y)).mean((2, 3))), {JOIN: ("a",), "head": (JOIN,)},
    ),
    "gate": (
        lambda: joined(lambda m, y: excited(m, y).mean((2, 3)), **squeeze()),
        {"squeeze": ("a",), "excite": ("squeeze",), GATE: ("a", "excite"), "head": (GATE,)},
    ),
    "gate, activation behind": (
        lambda: joined(lambda m, y: F.hardswish(excited(m, m.b(y))).mean((2, 3)), **squeeze()),
        {"b": ("a",), "squeeze": ("b",), "excite": ("squeeze",), GATE: ("b", "excite"), "head": (GATE,)},
    ),
    "gate, ReLU behind": (
        lambda: joined(lambda m, y: F.relu(m.b(y) * m.c(y)).mean((2, 3)), c=nn.Conv2d(4, 4, 1)),
        {"b": ("a",), "c": ("a",), GATE: ("b", "c"), "head": (GATE,)},
    ),
    "spatial gate": (
        lambda: joined(lambda m, y: (m.b(y) * torch.sigmoid(m.where(y))).mean((2, 3)), where=nn.Conv2d(4, 1, 3, padding=1)),
        {"b": ("a",), "where": ("a",), GATE: ("b", "where"), "head": (GATE,)},
    ),
    "shuffled": (
        lambda: joined(lambda m, y: m.c(shuffled(F.relu(m.b(y)))).mean((2, 3)), c=nn.Conv2d(4, 4, 3, groups=2)),
        {"b": ("a",), "c": ("b",), "head": ("c",)},
    ),
    "split": (
        lambda: joined(
            lambda m, y: (lambda halves: torch.cat([halves[0], m.c(halves[1])], 1).mean((2, 3)))(m.b(y).chunk(2, 1)),
            c=nn.Conv2d(2, 2, 1),
        ),
        {"b": ("a",), "c": ("b",), "head": ("b", "c")},
    ),
    "concatenated": (
        lambda: joined(
            lambda m, y: m.c(torch.cat([F.relu(m.b(y)), F.max_pool2d(y, 3, 1, 1)], 1)).mean((2, 3)), c=nn.Conv2d(8, 4, 3)
        ),
        {"b": ("a",), "c": ("a", "b"), "head": ("c",)},
    ),
    "read twice": (
        lambda: joined(lambda m, y: m.b2(torch.cat([y, torch.tanh(y), m.b(y)], 1)).mean((2, 3)), b2=nn.Conv2d(12, 4, 3)),
        {"b": ("a",), "b2": ("a", "b"), "head": ("b2",)},
    ),
    "read twice by groups": (
        lambda: joined(lambda m, y: m.c(torch.cat([y, torch.tanh(y)], 1)).mean((2, 3)), c=nn.Conv2d(8, 4, 3, groups=2)),
        {"c": ("a",), "head": ("c",)},
    ),
    "read twice within a group": (
        lambda: joined(
            lambda m, y: m.c(torch.cat([y[:, :2], torch.tanh(y[:, :2]), y[:, 2:], torch.tanh(y[:, 2:])], 1)).mean((2, 3)),
            c=nn.Conv2d(8, 4, 3, groups=2),
        ),
        {"c": ("a",), "head": ("c",)},
    ),
    "depthwise on padded channels": (
        lambda: joined(
            lambda m, y: m.c(halved(y, 1, 2)).mean((2, 3))[:, :4], c=nn.Conv2d(7, 7, 3, padding=1, groups=7)
        ),
        {"c": ("a",), "head": ("c",)},
    ),
    "padded shortcut": (
        lambda: Net(
            lambda m, x: m.head((lambda y: F.relu(m.b(y) + halved(y, 1, 1)))(F.relu(m.a(x))).mean((2, 3))),
            a=nn.Conv2d(2, 2, 3, padding=1), b=nn.Conv2d(2, 4, 3, 2, 1), head=nn.Linear(4, 3),
        ),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "moved by its own mean": (
        lambda: joined(
            lambda m, y: m.c(y * torch.sigmoid(y.mean((2, 3), keepdim=True))).mean((2, 3)), c=nn.Conv2d(4, 4, 1)
        ),
        {"c": ("a",), "head": ("c",)},
    ),
    "blind to shifts": (lambda: joined(lambda m, y: m.b(y).std((2, 3))), {"b": ("a",), "head": ("b",)}),
    "one channel for all": (
        lambda: Net(
            lambda m, x: m.head(F.relu(m.up(F.relu(m.a(x)))).mean((2, 3))),
            a=nn.Conv2d(2, 1, 3), up=Scale(4, 1, 1), head=nn.Linear(4, 3),
        ),
        {"head": ("a",)},
    ),
    "one of its channels added to all": (
        lambda: joined(lambda m, y: F.relu(y[:, :1] + y).mean((2, 3))), {JOIN: ("a",), "head": (JOIN,)},
    ),
    "a layer called twice": (
        lambda: joined(lambda m, y: m.c(torch.cat([m.b(y), m.b(F.relu(y - 1))], 1)).mean((2, 3)), c=nn.Conv2d(8, 4, 1)),
        {"b": ("a",), "b, call 2": ("a",), "c": ("b", "b, call 2"), "head": ("c",)},
    ),
    "gate of a vector": (
        lambda: joined(
            lambda m, y: (y * torch.sigmoid(m.h(y.mean((2, 3)))).view(y.size(0), 4, 1, 1).expand_as(y)).mean((2, 3)),
            h=nn.Linear(4, 4),
        ),
        {"h": ("a",), GATE: ("a", "h"), "head": (GATE,)},
    ),
    "residual, channels last": (
        lambda: Net(
            lambda m, x: m.head((lambda y: F.gelu(m.h(y) + y))(F.relu(m.a(x)).permute(0, 2, 3, 1)).mean((1, 2))),
            a=nn.Conv2d(2, 4, 3), h=nn.Linear(4, 4), head=nn.Linear(4, 3),
        ),
        {"h": ("a",), JOIN: ("h", "a"), "head": (JOIN,)},
    ),
    "residual, scaled, channels last inside": (
        lambda: Net(
            lambda m, x: m.head((lambda y: y + m.scale(m.h(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))(m.a(x)).mean((2, 3))),
            a=nn.Conv2d(2, 4, 3), h=nn.Linear(4, 4), scale=Scale(4), head=nn.Linear(4, 3),
        ),
        {"h": ("a",), JOIN: ("a", "h"), "head": (JOIN,)},
    ),
    "residual, PReLU behind": (
        lambda: joined(lambda m, y: m.act(m.b(y) + y).mean((2, 3)), act=nn.PReLU(4, 0.2)),
        {"b": ("a",), JOIN: ("b", "a"), "head": (JOIN,)},
    ),
    "a branch without the image": (
        lambda: joined(lambda m, y: (m.b(torch.zeros_like(y)) + y).mean((2, 3))), {JOIN: ("b", "a"), "head": (JOIN,)},
    ),
}  # fmt: skip
