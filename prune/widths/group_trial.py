"""The trial of one group: its units are removed from the layers that read them, which are reconstructed.

In: a traced network, and its activations on images for the fit and for the judgement. Out: class scores of the latter.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...network.channels.group import ChannelGroup, Member
from ...network.graph.leaf_modules import ZeroPadChannels
from ...network.hooks import pick_logits
from ..repair.activations import Activations
from ..repair.least_squares import Problem, ReconstructionSettings, can_fit


class GroupTrial:
    """One group of a traced network, whose units are removed from its readers; all other activations are reused.

    Attributes:
        readers: the nodes that read the group's channels, each with its member of the group; where only products do (queries
            and keys), the layers that produce them.
        first: the position of the first reader in the graph.
    """

    def __init__(self, view: fx.GraphModule, group: ChannelGroup) -> None:
        self.view, self.group = view, group
        members = {member.layer: member for member in group.consumers or group.producers}
        order = {node: index for index, node in enumerate(view.graph.nodes)}
        calls = Counter(node.target for node in view.graph.nodes if node.op == "call_module")
        self.readers: dict[fx.Node, Member] = {
            node: members[str(node.target)]
            for node in view.graph.nodes
            if node.op == "call_module" and node.target in members
        }
        self.first = min((order[node] for node in self.readers), default=len(order))
        self._refitted = {
            node
            for node, member in self.readers.items()
            if member.side == "in" and calls[node.target] == 1 and can_fit(view.get_submodule(str(node.target)))
        }
        self._behind = _behind(view, self.readers)
        changed = set(self._behind)
        self._outside = sorted(
            {source for node in self._behind for source in node.all_input_nodes if source not in changed}
            | self._refitted,
            key=lambda node: order[node],
        )
        place = {node: index for index, node in enumerate(self._behind)}
        self._to_last_reader = max((place[node] for node in self.readers), default=-1) + 1
        self._last_read: dict[fx.Node, list[fx.Node]] = {node: [] for node in self._behind}
        for node in self._behind[:-1]:
            self._last_read[max(node.users, key=place.__getitem__, default=node)].append(node)
        self._problems: dict[fx.Node, Problem] = {}

    @contextlib.contextmanager
    def holding(self, *sets: Activations) -> Iterator[None]:
        """Compute the activations that the trial reads, and keep them until exit."""
        for activations in sets:
            for node in self._outside:
                activations.hold(node)
            for node in self._outside:
                activations.get(node)
        try:
            yield
        finally:
            for activations in sets:
                for node in self._outside:
                    activations.release(node)
            self._problems.clear()

    def run(
        self, fit: Activations, judge: Activations, removed: Sequence[int], settings: ReconstructionSettings
    ) -> Tensor:
        """The class scores of the judged images without the removed units."""
        own: tuple[dict[fx.Node, list[Any]], dict[fx.Node, list[Any]]] = ({}, {})
        for node in self._behind[: self._to_last_reader]:  # all images at once, as each reader is fitted on all
            change = self._change(node, fit, own[0], removed, settings) if node in self.readers else None
            for activations, values in zip((fit, judge), own, strict=True):
                values[node] = [
                    change(activations.read(node.all_input_nodes[0], batch, values))
                    if change is not None
                    else activations.run(node, batch, values)
                    for batch in range(activations.batches)
                ]
                for read in self._last_read[node]:
                    values.pop(read, None)
        own[0].clear()
        logits = []
        for batch in range(judge.batches):  # batch by batch to the outputs, to save memory
            last: dict[fx.Node, Any] = {node: {batch: given[batch]} for node, given in own[1].items()}
            for node in self._behind[self._to_last_reader :]:
                last[node] = {batch: judge.run(node, batch, last)}
                for read in self._last_read[node]:
                    last.pop(read, None)
            for given in own[1].values():
                given[batch] = None
            logits.append(pick_logits(last[self._behind[-1]][batch]).cpu())
        return torch.cat(logits)

    def _change(
        self,
        node: fx.Node,
        fit: Activations,
        values: Mapping[fx.Node, list[Any]],
        removed: Sequence[int],
        settings: ReconstructionSettings,
    ) -> Callable[[Tensor], Tensor]:
        """What replaces a reader without the removed units, as a function of its input."""
        member = self.readers[node]
        gone = sorted({channel for unit in removed for channel in member.channels[unit]})
        layer: Any = self.view.get_submodule(str(node.target))
        source = node.all_input_nodes[0]
        if isinstance(layer, ZeroPadChannels):
            return _pad_without(layer, gone, [fit.read(source, batch, values) for batch in range(fit.batches)])
        if node in self._refitted and len(gone) == member.width:
            return _constant([fit.get(node)[batch] for batch in range(fit.batches)])
        if node not in self._refitted:
            dim = -1 if isinstance(layer, nn.Linear) else int(getattr(layer, "dim", 1))

            index = torch.tensor(gone, dtype=torch.long)

            def masked(seen: Tensor) -> Tensor:
                own = index.to(seen.device)
                result: Tensor
                if member.side == "out":
                    result = layer(seen).index_fill(dim, own, 0)
                else:
                    result = layer(seen.index_fill(dim, own, 0))
                return result

            return masked
        problem = self._problems.get(node)
        if problem is None:
            problem = Problem(layer, settings)
            for batch in range(fit.batches):
                problem.add(fit.read(source, batch, values), fit.get(node)[batch], batch)
            if source not in values:  # its input is the same at every width, and so are the statistics
                self._problems[node] = problem
        weight, constant, _ = problem.solve(_kept_features(layer, gone))
        return _with_weights(layer, weight, constant)


def _behind(view: fx.GraphModule, readers: Mapping[fx.Node, Member]) -> list[fx.Node]:
    """The readers and every node that depends on one, in order."""
    changed: dict[fx.Node, None] = {}
    for node in view.graph.nodes:
        if node in readers or any(source in changed for source in node.all_input_nodes):
            changed[node] = None
    return list(changed)


def _constant(wanted: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """What replaces a reader without any input channel: its mean target."""
    dims = [0] if wanted[0].dim() == 2 else [0, 2, 3]
    mean = torch.stack([value.double().sum(dims) for value in wanted]).sum(0)
    mean = (mean * wanted[0].shape[1] / sum(value.numel() for value in wanted)).to(wanted[0].dtype)
    shape = (1, -1) if wanted[0].dim() == 2 else (1, -1, 1, 1)
    size = wanted[0].shape[2:]
    return lambda seen: mean.view(shape).expand(len(seen), -1, *size).clone()


def _kept_features(layer: Any, gone: Sequence[int]) -> Tensor:
    """Indices of the regression's features that are kept: the taps of the remaining channels, within each group."""
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
    """What replaces a padded shortcut: it fills the removed channels with their means."""
    means = torch.cat([seen.mean((2, 3)) for seen in inputs]).mean(0)
    lost = set(gone)
    shown = [index for index, source in enumerate(layer.source.tolist()) if source in lost]
    values = means[layer.source[shown].to(means.device)].view(1, -1, 1, 1)

    def forward(seen: Tensor) -> Tensor:
        result: Tensor = layer(seen).clone()
        result[:, shown] = values.expand(len(result), -1, *result.shape[2:])
        return result

    return forward
