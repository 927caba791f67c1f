"""Shapley values by their definition: the payoff of every coalition, and sums over all of them."""

import copy
import math

import torch
from torch import nn

from secateur.explain.shapley.explainer import ShapleyValues
from secateur.network.graph.channel_origins import NONE
from secateur.network.graph.execution import run_graph
from secateur.network.graph.topology import GATE, JOIN
from secateur.network.graph.trace import trace


def inputs(images):
    """As the network sees them."""
    return images.preprocessing.normalise(images.pixels())


def dense(found: ShapleyValues, players):
    """``[images, channels, players]``; what belongs to nobody must be zero, and no channel has two values of one player."""
    images, channels, _ = found.values.shape
    own = found.players.expand(channels, -1)
    ordered = own.sort(1).values
    assert not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NONE)).any())
    assert own.shape == found.values.shape[1:]
    whole = torch.zeros(images, channels, players + 1)
    whole.scatter_add_(2, torch.where(own == NONE, players, own).expand(images, -1, -1), found.values)
    assert whole[..., players].abs().max() < 1e-6
    return whole[..., :players]


def payoff_name(explainer, target):
    """The node of what a target pays: a layer's output behind its BatchNorm, a join behind all that acts on it alone."""
    site = explainer.topology.sites[target]
    if site.kind in (JOIN, GATE):
        return site.reading.name
    readers = list(site.node.users)
    norm = [node for node in readers if node.op == "call_module" and len(readers) == 1]
    if norm and isinstance(explainer.view.get_submodule(norm[0].target), nn.BatchNorm2d | nn.BatchNorm1d):
        return norm[0].name
    return site.node.name


def payoff(value, dim):
    """The mean over places, ``[n, C]``."""
    value = value.movedim(dim, 1)
    return value.flatten(2).mean(2) if value.dim() > 2 else value


def enumerate_coalitions(network, explainer, target, sources, image, background):
    """Shapley values ``[channels, players]`` from all coalitions of one image, each run through a float64 copy of the network.

    Players left out show the background images' channels in the sources' maps, and the rest of the network goes on from there.
    """
    view = trace(copy.deepcopy(network.module).double(), network.example().double())
    nodes = {node.name: node for node in view.graph.nodes}
    sites = [explainer.topology.sites[name] for name in sources]
    starts = [nodes[site.node.name] for site in sites]
    wanted = nodes[payoff_name(explainer, target)]
    image, background = image.double().unsqueeze(0), background.double()
    own, other = run_graph(view, image, starts), run_graph(view, background, starts)
    count = sum(site.channels for site in sites)
    assert count <= 8
    coalitions = torch.tensor(
        [[code >> player & 1 for player in range(count)] for code in range(2**count)], dtype=torch.bool
    )
    changes, first = {}, 0
    for site, node in zip(sites, starts, strict=True):
        here = coalitions[:, first : first + site.channels].repeat_interleave(len(background), 0)
        here = here.view(len(here), *[-1 if dim == site.dim else 1 for dim in range(1, own[node].dim())])
        mixed = torch.where(here, own[node], other[node].repeat(len(coalitions), *[1] * (other[node].dim() - 1)))
        changes[node] = lambda _, mixed=mixed: mixed
        first += site.channels
    rows = image.expand(len(coalitions) * len(background), -1, -1, -1)
    (value,) = run_graph(view, rows, [wanted], changes).values()
    worth = payoff(value, explainer.topology.sites[target].dim).view(len(coalitions), len(background), -1).mean(1)
    phi = torch.zeros(worth.shape[1], count, dtype=torch.double)
    for player in range(count):
        for code in range(2**count):
            if not code >> player & 1:
                size = bin(code).count("1")
                weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                phi[:, player] += weight * (worth[code | 1 << player] - worth[code])
    return phi


def whole(explainer, images):
    """Target by target, the parts put together."""
    parts = {}
    for found in explainer(images):
        assert found.start == sum(len(part) for part in parts.get(found.target, ()))
        parts.setdefault(found.target, []).append(found.values)
    return {target: torch.cat(found) for target, found in parts.items()}
