"""The losses of whole residual branches, as a repair leaves them: all that reads them is fitted again, some layers deep.

A branch whose sum is the branch's own input plus the branch is replaced by zero, so that its input passes through; any other
gives the best constant. Then the next ``DEPTH`` layers are fitted in network order, as
:func:`~secateur.prune.repair.reconstruction.reconstruct` fits them. The loss is the mean of KL(original || cut) over the class
scores, in nats, on calibration images that took no part in the fits. No label is read.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx, nn

from ...common.progress import Progress, silent
from ...network.channels.cut import Cut, LayerCut, apply_cut, cut_of
from ...network.channels.group import ChannelGroup
from ...network.channels.zero_pad import followable
from ...network.evaluation import divergence, predict
from ...network.graph.pass_through import passes
from ...network.graph.reach import depends_on
from ...network.graph.stand_ins import Constant
from ...network.graph.trace import trace
from ...network.hooks import pick_logits
from ...network.images.images import Images
from ...network.network import Network
from ..repair.activations import Stream
from ..repair.layer_fits import fit_layers, join_behind, layers_behind, norm_behind
from ..repair.least_squares import ReconstructionSettings
from .sensitivity import RUINED
from .trial_images import MEMORY_BYTES, split_images

DEPTH = 5
"""The number of layers behind the last removed branch that are fitted. With all layers, as a repair fits, the losses of
ResNet-20's blocks on CIFAR-10 sum to 1.442 nats (seed 0), with four to 1.443, with five to 1.444, with six to 1.412."""


def measure_branches(
    network: Network,
    groups: Sequence[ChannelGroup],
    images: Images,
    settings: ReconstructionSettings | None = None,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    progress: Progress = silent,
) -> dict[str, float]:
    """The loss of every whole branch that may be removed, alone, in nats, by the name of its last layer.

    Raises:
        InputError: the network cannot be traced, or there are fewer than four images.
    """
    if not any(group.branch for group in groups):
        return {}
    losses, found = BranchLosses(network, groups, images, settings, device=device, batch_size=batch_size), {}
    for done, name in enumerate(losses.names, 1):
        found[name] = losses.without([name])
        progress(done, len(losses.names))
    return found


class BranchLosses:
    """What a network loses without some of its whole branches, everything else uncut.

    Args:
        images: calibration images in random order; the same of them fit and judge as in
            :func:`~secateur.prune.widths.measure_sensitivity.measure_sensitivity`.

    Attributes:
        names: the branches that may be removed whole, each named by its last layer, in network order.

    Raises:
        InputError: the network cannot be traced, or there are fewer than four images.
    """

    def __init__(
        self,
        network: Network,
        groups: Sequence[ChannelGroup],
        images: Images,
        settings: ReconstructionSettings | None = None,
        *,
        device: str = "cpu",
        batch_size: int = 64,
    ) -> None:
        self._network, self._groups, self._device = network, groups, device
        self._settings = settings or ReconstructionSettings()
        self._view = trace(followable(network.module, network.example(1)), network.example()).to(device)
        fitted, self._judged = split_images(network, groups, images)
        self._images, self._batch_size = (fitted, self._judged), batch_size
        self._reference = predict(network.copy().module.to(device), self._judged, batch_size, device, pick=pick_logits)
        self._order: dict[str, int] = {}
        for place, node in enumerate(self._view.graph.nodes):
            self._order.setdefault(str(node.target), place)
        self._streams: tuple[Stream, Stream] | None = None
        self._position = 0
        branches = {group.branch for group in groups if group.branch}
        self.names = tuple(sorted(branches, key=self._order.__getitem__))

    def without(self, branches: Collection[str]) -> float:
        """The loss of removing branches together, in nats; ``RUINED`` where the class scores are not finite."""
        removed = {group.name: range(group.units) for group in self._groups if group.branch in branches}
        return self._loss(cut_of(self._groups, removed), DEPTH)

    def of(self, cut: Cut) -> float:
        """The loss of any cut of the network, with every layer behind it fitted, in nats."""
        return self._loss(cut, None) if cut else 0.0

    def _loss(self, cut: Cut, depth: int | None) -> float:
        module = apply_cut(self._network.module, cut, self._network.example(1))
        view = trace(module, self._network.example()).to(self._device)
        with torch.no_grad():
            fitted, judged = self._streams_at(min(self._order[layer] for layer in cut if layer in self._order))
            whole, small = fitted.handed_to(fitted.view), fitted.handed_to(view)
            layers = layers_behind(view, cut)
            constants = {name for name, module in view.named_modules() if isinstance(module, Constant)}
            ends = [
                node for node in layers if node.target in constants and cut.get(str(node.target), LayerCut()).in_removed
            ]
            through = {node for node in ends if _give_zero(small, node)}
            last = len(layers) if depth is None else layers.index(ends[-1]) + 1 + depth
            wanted = [node for node in layers[:last] if node not in through]
            fit_layers(whole, small, wanted, cut, self._settings)
            output = next(node for node in view.graph.nodes if node.op == "output")
            scores = [pick_logits(value).float().cpu() for (value,) in judged.handed_to(view).values([output])]
        lost = divergence(torch.cat(scores), self._reference)
        return max(0.0, lost) if math.isfinite(lost) else RUINED

    def _streams_at(self, position: int) -> tuple[Stream, Stream]:
        """The original on both sets of images, stored just before a position; the next is best at or behind it."""
        if self._streams is None or position < self._position:
            share = MEMORY_BYTES // 4  # two more streams start from each of these
            fitted, judged = (Stream(self._view, images, self._batch_size, share) for images in self._images)
            self._streams = fitted, judged
        for stream in self._streams:
            stream.advance(list(stream.order)[position])
        self._position = position
        return self._streams


def _give_zero(small: Stream, node: fx.Node) -> bool:
    """Let a branch's last layer give zero if its own input passes through the sum; whether it does."""
    join, norm = join_behind(small, node), norm_behind(small.view, node)
    if join is None:
        return False
    source = join[1]
    while passes(small.view, source):
        source = source.all_input_nodes[0]
    if not depends_on(node, source) or [str(other.target) for other in small.order].count(norm) > 1:
        return False
    if norm:
        small.view.set_submodule(norm, nn.Identity())
    layer: Any = small.view.get_submodule(str(node.target))
    layer.bias.zero_()
    return True
