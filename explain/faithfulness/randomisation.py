"""Sanity checks (Adebayo et al., NeurIPS 2018): whether scores depend on the learned weights and on the labels."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from ...common.progress import Progress, silent
from ...network.evaluation import evaluate
from ...network.graph.trace import trace
from ...network.images.images import Images
from ...network.network import Network
from ...network.training import TrainingSettings, train
from .curves import correlation

Rank = Callable[[Network], Mapping[str, Tensor]]
"""A network to one score per kernel, ``[C]`` by layer."""


@dataclass(frozen=True)
class Resemblance:
    """Spearman's rank correlation of two sets of scores by layer; NaN if either side is constant."""

    layers: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean over layers with a correlation; NaN if there is none."""
        known = [value for value in self.layers.values() if not math.isnan(value)]
        return sum(known) / len(known) if known else float("nan")


@dataclass(frozen=True)
class RandomisationStep:
    """The correlation with the original scores after ``layer`` and all later layers were re-initialised."""

    layer: str
    resemblance: Resemblance


def cascading_randomisation(
    network: Network, rank: Rank, *, seed: int = 0, progress: Progress = silent
) -> tuple[RandomisationStep, ...]:
    """Re-initialise the weights layer by layer, from the head back to the input, and compare the scores at every step.

    Weights come from each module's own ``reset_parameters``; a layer's normalisation is reset with it. After the last step
    nothing learned is left, except for parameters that no module can reset. Scores that still correlate with the original ones
    do not depend on what the network learned. The given network is not changed.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, section 4; Cheng et al. 2023, section 4.1.

    Raises:
        InputError: the network's forward cannot be traced.
    """
    original = rank(network)
    current = network.copy()
    steps = []
    order = _from_head_to_input(network)
    with torch.random.fork_rng(devices=[]):
        for done, (layer, names) in enumerate(order.items()):
            torch.manual_seed(seed + done)  # ranking may draw random numbers itself
            for name in names:
                _reset(current.module.get_submodule(name))
            steps.append(RandomisationStep(layer, resemblance(rank(current), original)))
            progress(done + 1, len(order))
    return tuple(steps)


@dataclass(frozen=True)
class LabelPermutation:
    """Scores of a network trained on true labels, compared with those of copies trained from the same initial weights.

    ``permuted``: the copy was trained on permuted labels; scores that depend on the labels differ. ``control``: the copy was
    trained on the true labels in another order, which shows the effect of chance. Accuracies are on the training images, in [0,
    1].
    """

    permuted: Resemblance
    control: Resemblance
    accuracy: float
    permuted_accuracy: float


def label_permutation(network: Network, images: Images, rank: Rank, settings: TrainingSettings) -> LabelPermutation:
    """Train the architecture three times from the same initial weights and compare the scores.

    Without the same initial weights, the kernels of the networks would not correspond. The permuted network's accuracy is on
    its permuted labels. ``settings.seed`` determines weights, permutation and order. The given network is not changed.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, section 5.
    """
    fresh = network.copy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for child in fresh.module.modules():
            _reset(child)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))
    shuffled = replace(images, labels=images.labels[order])
    scores, accuracies = [], []
    for given, seed in ((images, settings.seed), (shuffled, settings.seed), (images, settings.seed + 1)):
        twin = fresh.copy()
        train(
            twin.module,
            given,
            lambda logits, _, labels: F.cross_entropy(logits, labels),
            None,
            replace(settings, seed=seed),
        )
        scores.append(rank(twin))
        accuracies.append(evaluate(twin.logits, given).accuracy)
    true, permuted, control = scores
    return LabelPermutation(resemblance(permuted, true), resemblance(control, true), accuracies[0], accuracies[1])


def resemblance(scores: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> Resemblance:
    """Spearman's rank correlation layer by layer."""
    return Resemblance({layer: found.spearman for layer, found in correlation(scores, original).items()})


def _from_head_to_input(network: Network) -> dict[str, list[str]]:
    """The layers in the reverse order of their first calls, each with the modules that are reset with it.

    A module that is not a layer (a normalisation) belongs to the last layer called before it, or to the first layer if there is
    none.
    """
    view = trace(network.module, network.example())
    own = dict(network.module.named_modules())
    steps: dict[str, list[str]] = {}
    waiting: list[str] = []
    for node in view.graph.nodes:
        name = str(node.target)
        if node.op != "call_module" or name not in own or not hasattr(own[name], "reset_parameters"):
            continue
        if any(name in names for names in (*steps.values(), waiting)):
            continue
        if isinstance(own[name], _ConvNd | nn.Linear):
            steps[name] = [*waiting, name]
            waiting = []
        elif steps:
            steps[next(reversed(steps))].append(name)
        else:
            waiting.append(name)
    return dict(reversed(steps.items()))


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
