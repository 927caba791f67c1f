"""Faithfulness of kernel scores: correlation with ablation, deletion and insertion curves, and sparse surrogates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...common.errors import InputError
from ...common.progress import Progress, silent
from ...network.graph.execution import Changes, output_node, run_graph
from ...network.graph.feature_points import FeaturePoint
from ...network.graph.trace import trace
from ...network.hooks import frozen, pick_logits
from ...network.images.images import Images
from ...network.network import Network
from ..kernel_maps import KernelMaps, class_layers, fill_values, kernel_maps, point_maps
from ..scores import KernelScores

SHARES = tuple(step / 8 for step in range(9))


@dataclass(frozen=True)
class Correlation:
    """Pearson's and Spearman's coefficients over ``kernels`` kernels; NaN if either side is constant."""

    pearson: float
    spearman: float
    kernels: int


def correlate(scores: Tensor, truth: Tensor) -> Correlation:
    """Correlation of two vectors ``[C]`` (Cheng et al. 2023, eq. 12, and on ranks with ties at their mean rank).

    Raises:
        InputError: their lengths differ.
    """
    from scipy.stats import pearsonr, spearmanr

    if scores.shape != truth.shape:
        raise InputError(f"{len(scores)} scores cannot be compared with {len(truth)}. Use scores of the same network.")
    first, second = scores.double().cpu().numpy(), truth.double().cpu().numpy()
    if len(first) < 2 or first.min() == first.max() or second.min() == second.max():
        return Correlation(float("nan"), float("nan"), len(first))
    return Correlation(float(pearsonr(first, second)[0]), float(spearmanr(first, second)[0]), len(first))


def correlation(scores: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Correlation]:
    """Correlation of each layer that both have, in the order of ``truth``.

    Args:
        scores: ``[C]`` by layer, as in ``KernelScores.layers``.
        truth: ``[C]`` by layer, as in ``Ablation.statistic``.

    Raises:
        InputError: a layer's widths differ, or no layer is in both.
    """
    both = {layer: correlate(scores[layer], values) for layer, values in truth.items() if layer in scores}
    if not both:
        raise InputError("The scores and the truth have no layer in common. Use scores of the same network.")
    return both


@dataclass(frozen=True)
class Curve:
    """A network's quality by the share of every layer's kernels that is removed (or, for insertion, present).

    ``accuracy`` is the share of correctly classified images, ``probability`` the mean probability of the image's class.
    """

    shares: tuple[float, ...]
    accuracy: tuple[float, ...]
    probability: tuple[float, ...]

    @property
    def area(self) -> float:
        """The area under the accuracy by the trapezoid rule; between 0 and 1 over the shares 0 to 1."""
        return _area(self.shares, self.accuracy)

    @property
    def probability_area(self) -> float:
        """The area under the probability."""
        return _area(self.shares, self.probability)


@dataclass(frozen=True)
class FaithfulnessCurves:
    """The curves of a ranking as an order of removal.

    ``deletion``: the most important kernels are removed first; a small area is better. ``pruning``: the least important
    first, as in a cut; a large area is better. ``insertion``: all are removed, then the most important are restored first;
    these are the states of ``pruning`` in reverse. ``layers`` are those whose kernels were removed.
    """

    deletion: Curve
    pruning: Curve
    layers: tuple[str, ...]
    images: int

    @property
    def insertion(self) -> Curve:
        shares = tuple(1 - share for share in reversed(self.pruning.shares))
        return Curve(shares, self.pruning.accuracy[::-1], self.pruning.probability[::-1])


def faithfulness_curves(
    network: Network,
    images: Images,
    scores: KernelScores,
    *,
    fill: str = "mean",
    batch_size: int = 64,
    device: str = "cpu",
    progress: Progress = silent,
) -> FaithfulnessCurves:
    """Remove the same share of every layer's kernels by score, in eighths, and measure the network.

    A removed kernel's output after its own normalisation and activation is set to its ``mean`` over the images and positions,
    or to ``zero``. Equal scores are removed in index order. Layers without scores are not changed, and neither is the head,
    whose kernels are the classes. Deletion and insertion follow Petsiuk et al., RISE, BMVC 2018, with kernels for pixels.

    Raises:
        InputError: the network's forward cannot be traced, or the scores are of another network.
    """
    view = trace(network.module, network.example()).to(device)
    head = class_layers(view)
    maps = [part for name, part in kernel_maps(view).items() if name in scores.layers and name not in head]
    if not maps:
        raise InputError(
            f"{scores.method} scored no layer of this network besides its head, so no kernel can be removed."
        )
    with frozen(view):
        fills = fill_values(view, maps, images, fill, batch_size, device)
        orders = {part.name: scores.layers[part.name].argsort(descending=True, stable=True) for part in maps}
        for part in maps:
            if len(orders[part.name]) != len(fills[part.name]):
                raise InputError(
                    f"The scores have {len(orders[part.name])} kernels for {part.name}, the network "
                    f"{len(fills[part.name])}: another network's."
                )
        states = [_removing(maps, fills, orders, share) for share in SHARES]
        backwards = {name: order.flip(0) for name, order in orders.items()}
        states += [_removing(maps, fills, backwards, share) for share in SHARES[1:-1]]
        found = _measure(view, states, images, batch_size, device, progress)
    most, least = found[: len(SHARES)], [found[0], *found[len(SHARES) :], found[len(SHARES) - 1]]
    return FaithfulnessCurves(_curve(most), _curve(least), tuple(orders), len(images))


@dataclass(frozen=True)
class SurrogateAgreement:
    """A network reduced, image by image, to the kept kernels, compared with the whole one.

    ``agreement`` is the share of images on which both predict the same class; ``accuracy`` is the whole network's,
    ``surrogate_accuracy`` the reduced one's, in [0, 1]; ``kept`` the mean share of kernels kept.
    """

    agreement: float
    accuracy: float
    surrogate_accuracy: float
    kept: float
    images: int


def surrogate_agreement(
    view: fx.GraphModule,
    points: Sequence[FeaturePoint],
    kept: Sequence[Tensor],
    images: Images,
    *,
    fill: str = "mean",
    batch_size: int = 64,
) -> SurrogateAgreement:
    """Evaluate the network with only the kept kernels, to test whether they suffice for the decision (Cheng et al. 2023, figure
    8).

    Args:
        view: a traced network.
        points: the feature maps in which kernels were chosen.
        kept: for every point, the kernels kept for each image, bool ``[images, C]``; all others are set to their ``mean`` over
            images and positions, or to ``zero``.
        images: the images that the kernels were chosen for, in the same order.

    Raises:
        InputError: the kept kernels do not have one row per image and one column per kernel.
    """
    for point, mask in zip(points, kept, strict=True):
        if mask.shape != (len(images), point.channels):
            raise InputError(
                f"The kept kernels of {point.name} have shape {tuple(mask.shape)}; expected "
                f"{len(images)} images x {point.channels} kernels."
            )
    device = str(next(view.parameters()).device)
    maps = [point_maps(point) for point in points]
    output = output_node(view)
    whole: list[Tensor] = []
    reduced: list[Tensor] = []
    with torch.no_grad(), frozen(view):
        fills = fill_values(view, maps, images, fill, batch_size, device)
        for index, (batch, labels) in enumerate(images.batches(batch_size)):
            batch, rows = batch.to(device), slice(index * batch_size, index * batch_size + len(labels))
            changes: dict[fx.Node, Callable[[Tensor], Tensor]] = {}
            for part, mask in zip(maps, kept, strict=True):
                changes |= part.changes(~mask[rows].to(device), fills[part.name])
            for predictions, altered in ((whole, None), (reduced, changes)):
                logits = pick_logits(run_graph(view, batch, [output], altered)[output])
                predictions.append(logits.argmax(1).cpu())
    first, second = torch.cat(whole), torch.cat(reduced)
    return SurrogateAgreement(
        _share(first == second),
        _share(first == images.labels),
        _share(second == images.labels),
        _share(torch.cat([mask.flatten() for mask in kept])),
        len(images),
    )


def discriminative_degree(counts: Tensor) -> Tensor:
    """``D = max_c N_c / sum_c N_c`` of each kernel, ``[C]`` (Cheng et al. 2023, eq. 13); NaN for a kernel that was never kept.

    Args:
        counts: how often each kernel was among those kept for an image of each class, ``[classes, C]``.
    """
    counts = counts.double()
    return counts.amax(0) / counts.sum(0)


def _removing(
    maps: Sequence[KernelMaps], fills: Mapping[str, Tensor], orders: Mapping[str, Tensor], share: float
) -> Changes:
    """Replace the first ``share`` of every layer's order of kernels, rounded to the nearest whole number."""
    changes: dict[fx.Node, Callable[[Tensor], Tensor]] = {}
    for part in maps:
        order, fill = orders[part.name], fills[part.name]
        removed = torch.zeros(len(order), dtype=torch.bool, device=fill.device)
        removed[order[: round(share * len(order))].to(fill.device)] = True
        changes |= part.changes(removed, fill)
    return changes


def _measure(
    view: fx.GraphModule, states: Sequence[Changes], images: Images, batch_size: int, device: str, progress: Progress
) -> list[tuple[float, float]]:
    """The (accuracy, mean probability of the image's class) of the network in each state."""
    output = output_node(view)
    sums = torch.zeros(len(states), 2, dtype=torch.float64)
    done = 0
    with torch.no_grad():
        for batch, labels in images.batches(batch_size):
            batch = batch.to(device)
            for index, changes in enumerate(states):
                logits = pick_logits(run_graph(view, batch, [output], changes)[output]).cpu()
                probability = logits.softmax(1).gather(1, labels.unsqueeze(1))
                sums[index] += torch.stack([(logits.argmax(1) == labels).double().sum(), probability.double().sum()])
            done += len(labels)
            progress(done, len(images))
    return [(accuracy, probability) for accuracy, probability in (sums / len(images)).tolist()]


def _curve(measured: Sequence[tuple[float, float]]) -> Curve:
    accuracy, probability = zip(*measured, strict=True)
    return Curve(SHARES, accuracy, probability)


def _area(shares: Sequence[float], heights: Sequence[float]) -> float:
    return float(torch.trapezoid(torch.tensor(heights, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)))


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())
