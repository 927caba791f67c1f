"""Repairs without labels: mean compensation, BatchNorm re-estimation, reconstruction, distillation on calibration images."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ...common.errors import UsageError
from ...network.channels.cut import Cut, rest_of_cut
from ...network.channels.zero_pad import followable
from ...network.evaluation import divergence, predict
from ...network.graph.leaf_modules import ZeroPadChannels
from ...network.graph.trace import following_norms
from ...network.hooks import frozen, pick_logits, reading_inputs
from ...network.images.images import Images
from ...network.network import Network
from ...network.training import TrainingSettings, train
from ..settings import REPAIRS
from .reconstruction import LayerFit, reconstruct

Progress = Callable[[int, int], None]
STEPS = {
    "none": (),
    "mean": ("mean",),
    "bn": ("mean", "bn"),
    "reconstruct": ("mean", "reconstruct", "bn"),
    "distill": ("mean", "reconstruct", "bn", "distill"),
}
"""The steps of each kind, in order; a step that does not lower the divergence on validation images is taken back."""
JUDGING_IMAGES = 1000
DISTILLATION_STEPS, DISTILLATION_BATCH, DISTILLATION_RATE, TEMPERATURE = 500, 64, 5e-4, 2.0


@dataclass(frozen=True)
class RepairStep:
    """One step: KL(original || pruned) in nats on validation images before and after it, and whether it was kept.

    The divergences are None where no validation images were given; every step is kept then.
    """

    name: str
    divergence_before: float | None
    divergence_after: float | None
    kept: bool


@dataclass(frozen=True)
class RepairReport:
    """What was done: the ``kind`` asked for, its steps, and what each touched; ``images`` is the calibration sample's size.

    ``fits`` are the layers that reconstruction fitted, on ``reconstruction_images`` of them.
    """

    kind: str
    images: int
    steps: tuple[RepairStep, ...] = ()
    compensated: tuple[str, ...] = ()
    reestimated: tuple[str, ...] = ()
    fits: tuple[LayerFit, ...] = ()
    reconstruction_images: int = 0

    @property
    def divergence(self) -> float | None:
        """KL(original || pruned) in nats on validation images after the last step that was kept."""
        reached = [step.divergence_after if step.kept else step.divergence_before for step in self.steps]
        return reached[-1] if reached else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RepairReport":
        return cls(
            values["kind"],
            values["images"],
            tuple(RepairStep(**step) for step in values["steps"]),
            tuple(values["compensated"]),
            tuple(values["reestimated"]),
            tuple(LayerFit(**fit) for fit in values["fits"]),
            values["reconstruction_images"],
        )


def repair(
    original: Network,
    pruned: Network,
    images: Images,
    kind: str = "reconstruct",
    *,
    before: Network | None = None,
    validation: Images | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 128,
    progress: Progress = lambda done, total: None,
) -> tuple[Network, RepairReport]:
    """Repair a cut network on calibration images; no label is read. Both networks given stay as they are.

    ``none`` changes nothing; ``mean`` gives what a removed kernel made on average to what read it; ``bn`` does so and then
    re-estimates the running statistics of every BatchNorm; ``reconstruct`` fits every layer behind the cut by least squares
    before that; ``distill`` adds some steps of training towards the original's outputs.

    Args:
        original: the network before its last cut, which says what the removed kernels made.
        before: in a later round the network that was cut last; the original if None.
        validation: images on which a step must lower the divergence to the original's outputs, or it is taken back.

    Raises:
        UsageError: no such kind.
        InputError: reconstruction cannot trace the network.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, images.train), "magnitude")
        >>> groups, costs = secateur.find_groups(network.module, network.example()), secateur.measure_cost(network)
        >>> units = secateur.score_units(groups, scores)
        >>> plan = secateur.plan_pruning(groups, units, costs, secateur.BudgetSettings(macs=0.5))
        >>> small, report = secateur.repair(network, secateur.cut(network, plan), images.train, validation=images.validation)
        >>> [step.name for step in report.steps if step.kept]  # the others were taken back
        ['mean', 'reconstruct']
        >>> report.divergence < report.steps[0].divergence_before / 4  # KL(original || pruned) in nats
        True
    """
    if kind not in REPAIRS:
        raise UsageError(f"repair must be one of {', '.join(REPAIRS)} (got {kind!r}).")
    result = replace(pruned, module=followable(pruned.module, pruned.example(1)).eval())
    report = RepairReport(kind, len(images))
    judge = judging(original, validation, seed, device) if validation is not None else lambda network: None
    current = judge(result)
    for index, name in enumerate(STEPS[kind]):

        def step(done: int, total: int, index: int = index) -> None:
            progress(1000 * index + 1000 * done // max(1, total), 1000 * len(STEPS[kind]))

        candidate, details = _run(name, original, result, before, images, seed, device, batch_size, step)
        reached = judge(candidate)
        kept = current is None or reached is None or reached < current
        report = replace(report, steps=(*report.steps, RepairStep(name, current, reached, kept)))
        if kept:
            result, current = candidate, reached
            report = replace(report, **details)
    result.module.eval()
    return result, report


def judging(original: Network, validation: Images, seed: int, device: str) -> Callable[[Network], float]:
    """A function that gives a network's divergence KL(original || network), in nats, on a sample of validation images; infinite
    where its class scores are not finite.
    """
    sample = validation.sample(JUDGING_IMAGES, seed)
    reference = predict(original.copy().module.to(device), sample, device=device, pick=pick_logits)

    def judge(network: Network) -> float:
        module = network.module.to(device).eval()
        value = divergence(predict(module, sample, device=device, pick=pick_logits), reference)
        module.to("cpu")
        return value if math.isfinite(value) else math.inf

    return judge


def _run(
    name: str,
    original: Network,
    pruned: Network,
    before: Network | None,
    images: Images,
    seed: int,
    device: str,
    batch_size: int,
    progress: Progress,
) -> tuple[Network, dict[str, Any]]:
    """One step on a copy; what it touched, by the name of the report's field."""
    if name == "reconstruct":
        network, fits, used = reconstruct(original, pruned, images, device=device, progress=progress)
        return network, {"fits": fits, "reconstruction_images": used}
    network = replace(pruned, module=copy.deepcopy(pruned.module))
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(done, len(images))

    if name == "mean":
        later = before is not None and len(before.cuts) == len(pruned.cuts)
        cut = rest_of_cut(pruned.cuts[-1], before.cuts[-1]) if before is not None and later else pruned.cuts[-1]
        source = before if before is not None and later else original
        names = compensate_means(source, network.module, cut, images, device, batch_size, step)
        return network, {"compensated": names}
    if name == "bn":
        return network, {"reestimated": reestimate_norms(network.module, images, device, batch_size, step)}
    distill(original, network.module, images, seed=seed, device=device, progress=progress)
    return network, {}


def distill(
    original: Network,
    pruned: nn.Module,
    images: Images,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> None:
    """Train ``pruned`` in place towards the original's softened outputs: some hundred steps of Adam, no labels.

    The last weights stay; whether they are any better is for images to say that took no part.
    """
    teacher = original.copy().module.to(device)

    def loss(logits: Tensor, batch: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = (pick_logits(teacher(batch)) / TEMPERATURE).log_softmax(1)
        softened = (logits / TEMPERATURE).log_softmax(1)
        return TEMPERATURE**2 * F.kl_div(softened, wanted, log_target=True, reduction="batchmean")

    batch = min(DISTILLATION_BATCH, len(images))
    epochs = max(1, round(DISTILLATION_STEPS / max(1, len(images) // batch)))
    settings = TrainingSettings(
        epochs, batch, DISTILLATION_RATE, 0.0, original.input_shape[0] == 3, seed, device, optimizer="adam"
    )
    with frozen(teacher):
        train(pruned.to(device), images, loss, None, settings, progress)


def compensate_means(
    original: Network,
    pruned: nn.Module,
    cut: Cut,
    images: Images,
    device: str = "cpu",
    batch_size: int = 128,
    step: Callable[[int], None] = lambda count: None,
) -> tuple[str, ...]:
    """Add to every reader of removed channels what they gave it on average over images and places, edges included.

    A convolution is linear, so the average of what it makes of the removed channels is what it makes of their average map.
    That goes into the running mean of the BatchNorm behind the reader, else into its bias (made if it has none); for a
    padded shortcut into what it shows in place of a lost channel. ``pruned`` is changed in place.
    """
    whole = followable(original.module, original.example(1)).to(device)
    readers = {name: part.in_removed for name, part in cut.items() if part.in_removed}
    sums: dict[str, dict[torch.Size, Tensor]] = {name: {} for name in readers}
    seen: dict[tuple[str, torch.Size], int] = defaultdict(int)

    def consume(name: str, maps: Tensor) -> None:
        total = maps.detach().double().sum(0)
        known = sums[name].get(total.shape)
        sums[name][total.shape] = total if known is None else known + total
        seen[name, total.shape] += len(maps)

    with torch.no_grad(), frozen(whole), reading_inputs(whole, readers, consume):
        for batch, labels in images.batches(batch_size):
            whole(batch.to(device))
            step(len(labels))
    whole.to("cpu")
    norms = following_norms(original.module, original.example())
    done = []
    for name, removed in readers.items():
        if not sums[name]:
            continue
        mean_maps = [
            ((total / seen[name, shape]).float().cpu(), seen[name, shape]) for shape, total in sums[name].items()
        ]
        layer, target = whole.get_submodule(name), pruned.get_submodule(name)
        out_removed = set(cut[name].out_removed)
        if isinstance(layer, ZeroPadChannels) and isinstance(target, ZeroPadChannels):
            _fill(layer, target, mean_maps[0][0], removed, out_removed)
        else:
            lost = _mean_output(layer, mean_maps, removed)
            kept = torch.tensor(
                [channel for channel in range(len(lost)) if channel not in out_removed], dtype=torch.long
            )
            if not len(kept):
                continue
            _give_back(pruned, target, norms.get(name, ("", None))[0], lost[kept])
        done.append(name)
    return tuple(done)


def reestimate_norms(
    module: nn.Module,
    images: Images,
    device: str = "cpu",
    batch_size: int = 128,
    step: Callable[[int], None] = lambda count: None,
) -> tuple[str, ...]:
    """Set the running statistics of every BatchNorm to their plain average over batches of ``images``, in place."""
    norms = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.track_running_stats
    }
    if not norms or len(images) < 2:
        return ()
    momenta = {name: norm.momentum for name, norm in norms.items()}
    module.to(device).eval()
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch, labels in images.batches(batch_size):
                if len(labels) > 1:
                    module(batch.to(device))
                step(len(labels))
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.eval()
        module.to("cpu")
    return tuple(norms)


def _mean_output(layer: nn.Module, mean_maps: list[tuple[Tensor, int]], removed: tuple[int, ...]) -> Tensor:
    """What ``layer`` makes of the removed channels, averaged over images and places, ``[C_out]``.

    ``mean_maps`` holds (average map, images) for every size of map that the layer reads.
    """
    sums, places = torch.zeros(0), 0
    for mean_map, images in mean_maps:
        dim = -1 if isinstance(layer, nn.Linear) else 0
        only = torch.zeros_like(mean_map)
        index = torch.tensor(removed)
        only.index_copy_(dim, index, mean_map.index_select(dim, index))
        with torch.no_grad():
            made: Tensor = layer(only.unsqueeze(0)) - layer(torch.zeros_like(only).unsqueeze(0))
        by_channel = made.flatten(0, -2) if isinstance(layer, nn.Linear) else made[0].flatten(1).T
        total = by_channel.sum(0) * images
        sums = sums + total if places else total
        places += len(by_channel) * images
    return sums / places


def _give_back(root: nn.Module, target: nn.Module, norm_name: str, lost: Tensor) -> None:
    with torch.no_grad():
        norm = root.get_submodule(norm_name) if norm_name else None
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            norm.running_mean -= lost
        elif isinstance(getattr(target, "bias", None), nn.Parameter):
            target.bias += lost  # type: ignore[operator]
        else:
            target.register_parameter("bias", nn.Parameter(lost.clone()))


def _fill(
    layer: ZeroPadChannels, target: ZeroPadChannels, mean_map: Tensor, removed: tuple[int, ...], out_removed: set[int]
) -> None:
    gone = set(removed)
    means = mean_map.flatten(1).mean(1)
    fill = layer.fill.clone()
    for channel, source in enumerate(layer.source.tolist()):
        if source in gone:
            fill[channel] = means[source]
    kept = torch.tensor([channel for channel in range(len(fill)) if channel not in out_removed])
    target.fill = fill[kept]
