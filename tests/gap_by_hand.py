"""gAP written out for one image at a time: what the tests of contributions and rankers compare with."""

import torch
from torch.nn import functional as F


def maps_of_chain(module, x):
    """The maps of both convolutions behind BatchNorm and ReLU, and the logits, written out."""
    first = F.relu(module.bn1(module.conv1(x)))
    second = F.relu(module.bn2(module.conv2(first)))
    return {"conv1": first, "conv2": second}, module.head(second.mean((2, 3)))


def by_hand(module, images):
    """For every image on its own: activation and gradient of its class's logit."""
    rows = {"conv1": [], "conv2": []}
    for pixels, label in zip(images.pixels(), images.labels.tolist(), strict=True):
        maps, logits = maps_of_chain(module, pixels.unsqueeze(0))
        for layer, activation in maps.items():
            (gradient,) = torch.autograd.grad(logits[0, label], activation, retain_graph=True)
            rows[layer].append((activation[0].detach().double(), gradient[0].double()))
    return rows


def close(got, wanted):
    return torch.allclose(got.double(), wanted.double(), rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


def overlap(first, second, threshold):
    a, b = ((part > threshold * part.max().clamp(min=0)) for part in (first, second))
    return int((a & b).sum()) / int((a | b).sum())
