"""Learned assignments of filters to class-specific clusters.

All are matrices of classes x filters that give, for the classes of a batch, a mask over the filters: ``training_mask`` is a
differentiable one, ``cluster`` the filters of the classes' clusters, sampled if the method samples.

``bernoulli`` is PICNN's (Guo et al., AAAI 2024, arXiv:2312.12068, eqs. 4-10), ``gumbel`` the alternative of its Table 4 (Jang
et al., ICLR 2017), ``csg`` the class-specific gates of Liang et al. (ECCV 2020), ``std`` a matrix that is never learned.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GUMBEL_TEMPERATURE = 0.01
GATE_OPEN = 0.5


def straight_through(value: Tensor, parameter: Tensor) -> Tensor:
    """The straight-through estimator: ``value``, with the gradient of ``parameter`` (eqs. 5 and 8)."""
    return parameter + (value - parameter).detach()


def sample_bernoulli(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """0 or 1 for each probability, with the gradient of the probability (eqs. 5-7)."""
    noise = torch.rand(probabilities.shape, generator=generator, device=probabilities.device)
    return straight_through((probabilities.detach() > noise).to(probabilities.dtype), probabilities)


def sample_categorical(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One class for each row of ``[n, classes]``, one-hot, with the gradient of the probabilities (eqs. 8-10)."""
    noise = torch.rand((len(probabilities), 1), generator=generator, device=probabilities.device)
    upper = probabilities.detach().double().cumsum(1)  # float32 sums over a thousand classes deviate from 1
    drawn = (noise.double() * upper[:, -1:] >= upper).sum(1).clamp(max=probabilities.shape[1] - 1)
    one_hot = F.one_hot(drawn, probabilities.shape[1]).to(probabilities.dtype)
    return straight_through(one_hot, probabilities)


class Assignment(nn.Module, ABC):
    """A learned assignment of filters to classes."""

    learned = True

    @property
    @abstractmethod
    def probabilities(self) -> Tensor:
        """The degree to which each filter belongs to each class, in [0, 1]: ``[classes, filters]``."""

    @abstractmethod
    def training_mask(self, classes: Tensor) -> Tensor:
        """A mask ``[n, filters]`` for one-hot classes ``[n, classes]``, differentiable in both."""

    @abstractmethod
    def cluster(self, classes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The cluster of each class index of ``[n]``: 0 or 1, ``[n, filters]``, without gradients."""

    def penalty(self) -> Tensor:
        """The penalty on the matrix that is added to the loss."""
        return self.probabilities.new_zeros(())

    def project(self) -> None:
        """Project the parameters onto their valid range after a step."""


class Bernoulli(Assignment):
    """P, the filter-class correspondence matrix: a softmax over classes, so that each filter's column sums to 1.

    A filter is in a class's cluster with its probability in P, sampled independently for every image."""

    def __init__(self, classes: int, filters: int, initial: str, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.randn(classes, filters, generator=generator)
        self.correspondence = nn.Parameter(start.softmax(0) if initial == "softmax" else start)

    @property
    def probabilities(self) -> Tensor:
        return self.correspondence.softmax(0)

    def training_mask(self, classes: Tensor) -> Tensor:
        return sample_bernoulli(classes @ self.probabilities)

    def cluster(self, classes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            return sample_bernoulli(self.probabilities[classes], generator)


class Untrained(Bernoulli):
    """STD: a P that keeps its random initialisation. Its clusters are about ``1 / classes`` of the filters, at random."""

    learned = False


class Gumbel(Bernoulli):
    """Each filter is assigned to one class, sampled by the Gumbel-softmax trick instead of Bernoulli trials."""

    def training_mask(self, classes: Tensor) -> Tensor:
        columns = self.correspondence.T.expand(len(classes), -1, -1)  # [n, filters, classes]
        drawn = F.gumbel_softmax(columns, tau=GUMBEL_TEMPERATURE, dim=2)
        return torch.einsum("nfk,nk->nf", drawn, classes)

    def cluster(self, classes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The clusters by one sampled class per filter and image."""
        with torch.no_grad():
            columns = self.probabilities.T
            noise = torch.rand(len(classes), len(columns), 1, generator=generator, device=columns.device)
            drawn = (noise >= columns.cumsum(1)).sum(2).clamp(max=columns.shape[1] - 1)
            return (drawn == classes.unsqueeze(1)).to(columns.dtype)


class Gates(Assignment):
    """Class-specific gates: values in [0, 1], of which the largest of each filter is 1, made sparse by an L1 penalty.

    The penalty is the sum of the gates beyond one class per filter, divided by the number of filters. A filter is in a class's
    cluster if its gate is above one half; the masks for training are the gates themselves.
    """

    def __init__(self, classes: int, filters: int, weight: float, generator: torch.Generator) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.rand(classes, filters, generator=generator))
        self.weight = weight
        self.project()

    @property
    def probabilities(self) -> Tensor:
        return self.gates

    def training_mask(self, classes: Tensor) -> Tensor:
        return classes @ self.gates

    def cluster(self, classes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (self.gates.detach()[classes] > GATE_OPEN).to(self.gates.dtype)

    def penalty(self) -> Tensor:
        beyond: Tensor = self.gates.abs().sum() - self.gates.shape[1]
        return self.weight * beyond.clamp(min=0) / self.gates.shape[1]

    @torch.no_grad()
    def project(self) -> None:
        self.gates.clamp_(0, 1)
        largest = self.gates.max(0, keepdim=True).values
        self.gates.div_(torch.where(largest > 0, largest, 1))


def make_assignment(
    kind: str, classes: int, filters: int, *, initial: str = "normal", gate_penalty: float = 0.1, seed: int = 0
) -> Assignment:
    """An untrained assignment: ``bernoulli``, ``gumbel``, ``csg`` or ``std``.

    ``initial``: the parameters of P are ``normal`` deviates, or their ``softmax`` (as in the published code).
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "csg":
        return Gates(classes, filters, gate_penalty, generator)
    kinds: dict[str, type[Bernoulli]] = {"bernoulli": Bernoulli, "gumbel": Gumbel, "std": Untrained}
    return kinds[kind](classes, filters, initial, generator)
