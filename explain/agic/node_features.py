"""The features of an attribution graph's nodes: the kernel's parameters, and its feature map on one image."""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ...network.graph.channel_origins import Site
from ...network.graph.topology import own_modules
from ..baselines import kernel_rows

COMPONENTS = 16
POOLED = 4
MAP_FEATURES = 4 + POOLED**2
MOST_EXACT = 1024


def parameter_features(view: fx.GraphModule, site: Site) -> Tensor:
    """Features of each kernel of a layer, float32 ``[C, 6 + COMPONENTS]``; of a join's channels none, ``[C, 0]``.

    L1 and L2 norm, mean and standard deviation of its weights, gamma and beta of its BatchNorm (1 and 0 without one), and its
    weights' first ``COMPONENTS`` principal components among its layer's kernels (zeros if a layer has fewer).
    """
    module = view.get_submodule(str(site.node.target)) if site.node.op == "call_module" else None
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return torch.zeros(site.channels, 0)
    kernels = kernel_rows(module).cpu()
    ones = torch.ones(len(kernels), dtype=torch.float64)
    gamma, beta = ones, torch.zeros_like(ones)
    own = own_modules(view, site)
    if own and isinstance(own[0], _BatchNorm) and own[0].weight is not None:
        gamma, beta = own[0].weight.detach().cpu().double(), own[0].bias.detach().cpu().double()
    norms = [kernels.abs().sum(1), kernels.norm(dim=1), kernels.mean(1), kernels.std(1, correction=0), gamma, beta]
    return torch.cat([torch.stack(norms, 1), principal_components(kernels, COMPONENTS)], 1).float()


def principal_components(rows: Tensor, count: int) -> Tensor:
    """Coordinates of ``[n, d]`` along its first ``count`` principal directions, ``[n, count]``; zeros beyond its rank.

    The sign of each direction makes its largest coordinate positive, so that equal rows give equal coordinates.
    """
    centred = rows - rows.mean(0)
    most = min(count, *centred.shape)
    if min(centred.shape) <= MOST_EXACT:
        left, size, _ = torch.linalg.svd(centred, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, size, _ = torch.svd_lowrank(centred, q=most + 8, niter=4)
    found = left[:, :most] * size[:most]
    found = found * torch.where(found.gather(0, found.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    return F.pad(found, (0, count - most))


def map_features(values: Tensor, dim: int) -> Tensor:
    """Features of each channel on each image, ``[n, C, MAP_FEATURES]``: mean, standard deviation, maximum, share of positive
    positions, and the map pooled to 4 x 4.

    Args:
        values: a site's output after its own normalisation and activation; a map, tokens, or one number per channel.
        dim: the dimension of the channels.
    """
    values = values.movedim(dim, 1)
    if values.dim() == 4:
        pooled = F.adaptive_avg_pool2d(values, POOLED).flatten(2)
    else:
        pooled = F.adaptive_avg_pool1d(values.flatten(2) if values.dim() > 2 else values.unsqueeze(2), POOLED**2)
    places = values.reshape(*values.shape[:2], -1)
    statistics = [places.mean(2), places.std(2, correction=0), places.amax(2), (places > 0).to(values).mean(2)]
    return torch.cat([torch.stack(statistics, 2), pooled], 2)
