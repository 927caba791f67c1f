"""What each group loses at each width, measured: units go, their readers are reconstructed, everything else stays whole.

The loss is the mean KL divergence KL(original || cut) of the class scores, in nats, on calibration images that took no part in
the fit; no label is read. Activations are made once, in network order, and reused up to the group's first reader.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...common.errors import InputError
from ...common.files import read_json, write_json
from ...explain.unit_scores import UnitScores
from ...network.channels.group import ChannelGroup, Member
from ...network.channels.zero_pad import followable
from ...network.evaluation import divergence, predict
from ...network.graph.leaf_modules import ZeroPadChannels
from ...network.graph.trace import trace
from ...network.hooks import pick_logits
from ...network.images.images import Images
from ...network.network import Network
from ..cost import measure_cost
from ..repair.activations import Activations
from ..repair.least_squares import Problem, ReconstructionSettings, can_fit

MEMORY_BYTES, LIVE_MAPS = 2 * 2**30, 8
"""What activations may take, reckoned as so many maps of the largest size per image."""
RUINED = 1e6
"""The loss, in nats, of a cut after which the class scores are not finite."""
SHARES = (0.75, 0.5, 0.25, 0.125)
FITTED_IMAGES, JUDGED_IMAGES = 400, 400
WORK_MACS, FEWEST_IMAGES = 10_000_000_000_000, 64
"""Large networks with many groups get fewer images, so that the measuring stays near this many multiply-accumulates."""

Curves = Mapping[str, tuple[tuple[int, float], ...]]
"""Group to (units kept, loss in nats), ascending by units."""


@dataclass(frozen=True)
class Sensitivity:
    """Measured losses. ``curves``: group to (units kept, loss in nats), ascending by units, the whole group with loss 0 last.

    ``fitted_images`` took part in the reconstruction of readers, ``judged_images`` in the loss. ``decided_by`` names, where
    several rankings stand behind one, whose order of removal each group's curve is of, and ``by_order`` holds the curves of
    every order, of the groups that it ranks; otherwise both are empty.
    """

    curves: Curves
    fitted_images: int
    judged_images: int
    decided_by: Mapping[str, str] = field(default_factory=dict)
    by_order: Mapping[str, Curves] = field(default_factory=dict)

    def loss(self, group: str) -> Callable[[int], float]:
        """The loss of a group as a function of the units it keeps: monotone cubic interpolation between measurements.

        Below the narrowest measured width the loss grows in inverse proportion to the width.
        """
        from scipy.interpolate import PchipInterpolator

        points = list(self.curves[group])
        for index in range(len(points) - 2, -1, -1):  # never less than a wider width loses
            kept, value = points[index]
            points[index] = (kept, max(value, points[index + 1][1]))
        curve = PchipInterpolator([kept for kept, _ in points], [value for _, value in points])
        narrowest, steepest = points[0]

        def at(kept: int) -> float:
            return float(curve(kept)) if kept >= narrowest else steepest * narrowest / max(kept, 1)

        return at

    def to_json(self) -> dict[str, Any]:
        return {
            "curves": _curves_to_json(self.curves),
            "fitted_images": self.fitted_images,
            "judged_images": self.judged_images,
            **({"decided_by": dict(self.decided_by)} if self.decided_by else {}),
            **(
                {"by_order": {one: _curves_to_json(own) for one, own in self.by_order.items()}} if self.by_order else {}
            ),
        }

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Sensitivity":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: missing, or not sensitivities.
        """
        values = read_json(path)
        try:
            by_order = {order: _curves_from_json(own) for order, own in values.get("by_order", {}).items()}
            return cls(
                _curves_from_json(values["curves"]),
                values["fitted_images"],
                values["judged_images"],
                values.get("decided_by", {}),
                by_order,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} does not hold sensitivities of secateur ({error}).") from error


def _curves_to_json(curves: Curves) -> dict[str, list[list[float]]]:
    return {name: [list(point) for point in curve] for name, curve in curves.items()}


def _curves_from_json(values: Mapping[str, Any]) -> Curves:
    return {name: tuple((int(kept), float(loss)) for kept, loss in curve) for name, curve in values.items()}


def measure_sensitivity(
    network: Network,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, UnitScores],
    images: Images,
    settings: ReconstructionSettings | None = None,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Measure every open group at 3/4, 1/2, 1/4 and 1/8 of its units, the lowest scores gone.

    Where a group ends a residual branch that may go whole, it is measured without any unit too, the branch a constant.

    Args:
        images: calibration images in random order; the first half fits, the second judges (400 each at most, fewer where
            their activations would not fit into memory or the work would pass ``WORK_MACS``).

    Raises:
        InputError: the network cannot be traced, or there are fewer than four images.

    Examples:
        >>> import secateur
        >>> network = secateur.load_model("digits")
        >>> images = secateur.load_images("digits", network.preprocessing)
        >>> calibration = images.train.sample(200, seed=0)
        >>> groups = secateur.find_groups(network.module, network.example())
        >>> scores = secateur.rank_kernels(secateur.RankingTask(network, calibration), "gap")
        >>> units = secateur.score_units(groups, scores)
        >>> sensitivity = secateur.measure_sensitivity(network, groups, units, calibration)
        >>> [kept for kept, loss in sensitivity.curves["stem.0"]]  # the loss is in nats
        [4, 8, 16, 24, 32]
    """
    settings = settings or ReconstructionSettings()
    trials_in_all = len(SHARES) * sum(1 for group in groups if not group.locked)
    worth = WORK_MACS // max(1, measure_cost(network).of({}).macs * trials_in_all)
    available = min(len(images), 2 * _affordable_images(network), max(FEWEST_IMAGES, worth))
    if available < 4:
        raise InputError("Sensitivities need at least four calibration images; raise --calibration.")
    fitted, judged = min(FITTED_IMAGES, available // 2), min(JUDGED_IMAGES, available - available // 2)
    view = trace(followable(network.module, network.example(1)), network.example()).to(device)
    parts = images.subset(torch.arange(fitted)), images.subset(torch.arange(fitted, fitted + judged))

    def activations() -> tuple[Activations, Activations]:
        made = Activations(view), Activations(view)
        for one, part in zip(made, parts, strict=True):
            one.feed(part, batch_size)
        return made

    along = activations()  # groups with one reader follow each other through the network; the others look far ahead
    order = {node: index for index, node in enumerate(view.graph.nodes)}
    trials = [_Trial(view, group, order) for group in groups if not group.locked]
    trials.sort(key=lambda trial: trial.first)
    curves: dict[str, tuple[tuple[int, float], ...]] = {}
    with torch.no_grad():
        reference = _final_scores(network, parts[1], device, batch_size)
        for index, trial in enumerate(trials):
            units = trial.group.units
            lowest_first = scores[trial.group.name].values.argsort(stable=True)
            widths = sorted({max(1, round(units * share)) for share in SHARES} - {units})
            if trial.group.ends_branch:
                widths = [0, *widths]
            fit, judge = along if len(trial.readers) == 1 else activations()
            trial.prepare(fit, judge)
            curve = []
            for step, kept in enumerate(widths):
                logits = trial.run(fit, judge, lowest_first[: units - kept].tolist(), settings)
                lost = divergence(logits, reference)
                curve.append((kept, max(0.0, lost) if math.isfinite(lost) else RUINED))
                progress(1000 * index + 1000 * (step + 1) // len(widths), 1000 * len(trials))
            trial.finish(fit, judge)
            curves[trial.group.name] = (*curve, (units, 0.0))
    return Sensitivity(curves, fitted, judged)


def _final_scores(network: Network, images: Images, device: str, batch_size: int) -> Tensor:
    module = network.copy().module.to(device)
    return predict(module, images, batch_size, device, pick=pick_logits)


class _Trial:
    """One group's units taken away from its readers, in a traced network whose other activations are made already."""

    def __init__(self, view: fx.GraphModule, group: ChannelGroup, order: Mapping[fx.Node, int]) -> None:
        self.view, self.group = view, group
        readers = {member.layer: member for member in group.consumers}
        calls = Counter(node.target for node in view.graph.nodes if node.op == "call_module")
        self.readers: dict[fx.Node, Member] = {}
        for node in view.graph.nodes:
            if node.op == "call_module" and node.target in readers:
                self.readers[node] = readers[str(node.target)]
        self.refitted = {
            node for node in self.readers if calls[node.target] == 1 and can_fit(view.get_submodule(str(node.target)))
        }
        self.first = min((order[node] for node in self.readers), default=len(order))
        self.behind: list[fx.Node] = []
        changed: set[fx.Node] = set()
        for node in view.graph.nodes:
            if node in self.readers or any(source in changed for source in node.all_input_nodes):
                changed.add(node)
                self.behind.append(node)
        self.outside = sorted(
            {source for node in self.behind for source in node.all_input_nodes if source not in changed}
            | self.refitted,
            key=lambda node: order[node],
        )
        place = {node: index for index, node in enumerate(self.behind)}
        self.fitted = max((place[node] for node in self.readers), default=-1) + 1
        self.unread: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.behind}
        for node in self.behind[:-1]:
            self.unread[max(node.users, key=place.__getitem__, default=node)].append(node)
        self.problems: dict[fx.Node, Problem] = {}

    def prepare(self, *sets: "Activations") -> None:
        """Make what the trial reads from outside, and keep it."""
        for activations in sets:
            for node in self.outside:
                activations.hold(node)
            for node in self.outside:
                activations.get(node)

    def finish(self, *sets: "Activations") -> None:
        for activations in sets:
            for node in self.outside:
                activations.release(node)
        self.problems.clear()

    def run(
        self, fit: "Activations", judge: "Activations", removed: Sequence[int], settings: ReconstructionSettings
    ) -> Tensor:
        """Class scores of the judged images without the removed units."""
        own: tuple[dict[fx.Node, list[Any]], dict[fx.Node, list[Any]]] = ({}, {})
        for node in self.behind[: self.fitted]:  # reader by reader, all images at once
            change = self._change(node, fit, own[0], removed, settings) if node in self.readers else None
            for activations, values in zip((fit, judge), own, strict=True):
                values[node] = [
                    change(activations.read(node.all_input_nodes[0], batch, values))
                    if change is not None
                    else activations.run(node, batch, values)
                    for batch in range(activations.batches)
                ]
                for read in self.unread[node]:
                    values.pop(read, None)
        own[0].clear()
        logits = []
        for batch in range(judge.batches):  # then batch by batch to the end
            last: dict[fx.Node, Any] = {node: {batch: given[batch]} for node, given in own[1].items()}
            for node in self.behind[self.fitted :]:
                last[node] = {batch: judge.run(node, batch, last)}
                for read in self.unread[node]:
                    last.pop(read, None)
            for given in own[1].values():
                given[batch] = None
            logits.append(pick_logits(last[self.behind[-1]][batch]).cpu())
        return torch.cat(logits)

    def _change(
        self,
        node: fx.Node,
        fit: "Activations",
        values: Mapping[fx.Node, list[Any]],
        removed: Sequence[int],
        settings: ReconstructionSettings,
    ) -> Callable[[Tensor], Tensor]:
        """What a reader becomes without the removed units: a function of its input."""
        member = self.readers[node]
        gone = sorted({channel for unit in removed for channel in member.channels[unit]})
        layer: Any = self.view.get_submodule(str(node.target))
        source = node.all_input_nodes[0]
        if isinstance(layer, ZeroPadChannels):
            return _pad_without(layer, gone, [fit.read(source, batch, values) for batch in range(fit.batches)])
        if node in self.refitted and len(gone) == member.width:
            return _constant([fit.get(node)[batch] for batch in range(fit.batches)])
        index = torch.tensor(gone, device=layer.weight.device)
        dim = -1 if isinstance(layer, nn.Linear) else 1
        if node not in self.refitted:

            def masked(seen: Tensor) -> Tensor:
                result: Tensor = layer(seen.index_fill(dim, index, 0))
                return result

            return masked
        problem = self.problems.get(node)
        if problem is None:
            problem = Problem(layer, settings)
            for batch in range(fit.batches):
                problem.add(fit.read(source, batch, values), fit.get(node)[batch], batch)
            if source not in values:  # the same input at every width: the statistics serve them all
                self.problems[node] = problem
        weight, constant, _ = problem.solve(_kept_features(layer, gone))
        return _with_weights(layer, weight, constant)


def _constant(wanted: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """A reader that has nothing left to read: what it should give, on average."""
    dims = [0] if wanted[0].dim() == 2 else [0, 2, 3]
    mean = torch.stack([value.double().sum(dims) for value in wanted]).sum(0)
    mean = (mean * wanted[0].shape[1] / sum(value.numel() for value in wanted)).to(wanted[0].dtype)
    shape = (1, -1) if wanted[0].dim() == 2 else (1, -1, 1, 1)
    size = wanted[0].shape[2:]
    return lambda seen: mean.view(shape).expand(len(seen), -1, *size).clone()


def _kept_features(layer: Any, gone: Sequence[int]) -> Tensor:
    """Which rows of the regression stay: the taps of the channels that stay, within each group."""
    taps = layer.weight[0, 0].numel()
    per_group = layer.weight.shape[1]
    lost = {channel % per_group for channel in gone}
    kept = torch.tensor([c for c in range(per_group) if c not in lost], device=layer.weight.device)
    features: Tensor = (kept.unsqueeze(1) * taps + torch.arange(taps, device=layer.weight.device)).flatten()
    return features


def _with_weights(layer: Any, weight: Tensor, constant: Tensor) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, nn.Linear):
        return lambda seen: nn.functional.linear(seen, weight, constant)

    def forward(seen: Tensor) -> Tensor:
        made: Tensor = nn.functional.conv2d(
            seen, weight, constant, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        return made

    return forward


def _pad_without(layer: ZeroPadChannels, gone: Sequence[int], inputs: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """A padded shortcut that shows the average of lost channels in their place."""
    means = torch.cat([seen.mean((2, 3)) for seen in inputs]).mean(0)
    lost = set(gone)
    shown = [index for index, source in enumerate(layer.source.tolist()) if source in lost]
    values = means[layer.source[shown].to(means.device)].view(1, -1, 1, 1)

    def forward(seen: Tensor) -> Tensor:
        result: Tensor = layer(seen).clone()
        result[:, shown] = values.expand(len(result), -1, *result.shape[2:])
        return result

    return forward


def _affordable_images(network: Network) -> int:
    """How many images' activations fit into ``MEMORY_BYTES``."""
    largest = 0

    def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [child.register_forward_hook(hook) for child in network.module.modules() if not list(child.children())]
    try:
        with torch.no_grad():
            network.module(network.example(1))
    finally:
        for handle in handles:
            handle.remove()
    return max(16, MEMORY_BYTES // (LIVE_MAPS * max(1, largest)))
