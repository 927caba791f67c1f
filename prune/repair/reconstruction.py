"""Reconstruction: layers that read a cut layer are fitted, by least squares, to the outputs that they had before the cut.

Layers are fitted in network order. Inputs come from the network as cut and repaired so far, targets from the original (He et
al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017). Where a layer feeds a residual join, its target is
the original's value at the join minus the other branch in the cut network, so that errors do not accumulate along the stream.
No label is read.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...common.progress import Progress, silent
from ...network.channels.cut import Cut
from ...network.channels.zero_pad import followable
from ...network.graph.leaf_modules import Add
from ...network.graph.pass_through import passes, removed_branches, set_to_zero
from ...network.graph.reach import depends_on
from ...network.graph.stand_ins import Constant
from ...network.graph.trace import trace
from ...network.images.images import Images
from ...network.network import Network
from .activations import Stream
from .least_squares import Problem, ReconstructionSettings, can_fit

MEMORY_BYTES = 2**30
"""The most bytes of stored activations for each network; the rest is computed again."""


@dataclass(frozen=True)
class LayerFit:
    """The fit of one layer. Errors are squared, relative to the variance of the target, on the positions that were fitted.

    Attributes:
        layer: the name of the layer.
        before: the error of the kept weights with the best constant.
        after: the error of the fitted weights.
        conditioning: the ratio of the largest to the smallest squared diagonal entry of the Cholesky factor.
        form: primal, dual, or constant for a layer without inputs.
        joined: whether the target was the value at a residual join.
    """

    layer: str
    before: float
    after: float
    conditioning: float
    form: str
    joined: bool


def reconstruct(
    original: Network,
    pruned: Network,
    images: Images,
    settings: ReconstructionSettings | None = None,
    *,
    device: str = "cpu",
    batch_size: int | None = None,
    memory_bytes: int = MEMORY_BYTES,
    zeros: Collection[str] = (),
    progress: Progress = silent,
) -> tuple[Network, tuple[LayerFit, ...], int]:
    """Fit every convolution and linear layer behind the cut. Neither network passed in is changed.

    Layers that are called several times, transposed, or not padded with zeros keep their weights. Statistics are accumulated
    over batches, so memory does not grow with the number of images (see :class:`~secateur.prune.repair.activations.Stream`).

    Args:
        zeros: the constants of removed branches that are set to zero instead of the best constant; what is behind them is
            fitted to that.

    Returns:
        The repaired network, the fits in network order, and the number of images used.

    Raises:
        InputError: the network cannot be traced.
    """
    settings = settings or ReconstructionSettings()
    if batch_size is None:
        _, height, width = original.input_shape
        batch_size = max(1, min(64, 64 * 112 * 112 // (height * width)))
    module = followable(pruned.module, pruned.example(1))
    views = (
        trace(followable(original.module, original.example(1)), original.example()),
        trace(module, original.example()),
    )
    for branch in removed_branches(views[1]):
        if branch.layer in zeros:
            set_to_zero(views[1], branch)
            set_to_zero(module, branch)
    whole, small = (Stream(view.to(device), images, batch_size, memory_bytes) for view in views)
    cut = pruned.cuts[-1]
    wanted = _layers_behind(small.view, cut) - {node.name for node in small.view.graph.nodes if node.target in zeros}
    fits = []
    with torch.no_grad():
        for node in small.view.graph.nodes:
            if node.name in wanted:
                whole.advance(whole.nodes[node.name])
                small.advance(node)
                fits.append(_fit(whole, small, node, module, cut, settings))
                progress(len(fits), len(wanted))
    return replace(pruned, module=module.eval()), tuple(fits), len(images)


def _layers_behind(view: fx.GraphModule, cut: Cut) -> set[str]:
    """Names of the nodes to fit: layers that lost inputs, and layers whose inputs are no longer the original's."""
    modules = dict(view.named_modules())
    calls = Counter(node.target for node in view.graph.nodes if node.op == "call_module")
    changed: set[fx.Node] = set()
    wanted = set()
    for node in view.graph.nodes:
        lost = node.op == "call_module" and node.target in cut and bool(cut[node.target].in_removed)
        if lost or any(source in changed for source in node.all_input_nodes):
            changed.add(node)
            if node.op == "call_module" and calls[node.target] == 1 and can_fit(modules[node.target]):
                wanted.add(node.name)
    return wanted


def _fit(
    whole: Stream,
    small: Stream,
    node: fx.Node,
    module: nn.Module,
    cut: Cut,
    settings: ReconstructionSettings,
) -> LayerFit:
    name = str(node.target)
    layer: Any = small.view.get_submodule(name)
    part = cut.get(name)
    gone = set(part.out_removed) if part else set()
    original: Any = whole.view.get_submodule(name)
    outputs = len(original.bias) if isinstance(original, Constant) else original.weight.shape[0]
    kept = torch.tensor([channel for channel in range(outputs) if channel not in gone])
    norm_name = _norm_behind(small.view, node)
    join = _join_behind(node, norm_name, small.view)
    if join is not None and any(small.shapes.get(part) != small.shapes[node] for part in join):
        join = None  # it is broadcast over the other branch's positions or channels
    problem = Problem(layer, settings)
    for index, (seen, target) in enumerate(_pairs(whole, small, node, kept, norm_name, join)):
        problem.add(seen, target, index)
    weight, constant, fit = problem.solve()
    for root in (small.view, module):
        _write(root, name, weight, constant, norm_name, whole.view, kept)
    return LayerFit(name, fit[0], fit[1], fit[2], fit[3], join is not None)


def _norm_behind(view: fx.GraphModule, node: fx.Node) -> str:
    if len(node.users) != 1:
        return ""
    reader = next(iter(node.users))
    if reader.op != "call_module":
        return ""
    norm = view.get_submodule(str(reader.target))
    return str(reader.target) if isinstance(norm, _BatchNorm) and norm.running_mean is not None else ""


def _join_behind(node: fx.Node, norm_name: str, view: fx.GraphModule) -> tuple[fx.Node, fx.Node] | None:
    """(the sum that the layer feeds, directly or through its norm; the other branch), if the other does not depend on it."""
    last = next(iter(node.users)) if norm_name else node
    while len(last.users) == 1 and passes(view, next(iter(last.users))):
        last = next(iter(last.users))
    if len(last.users) != 1:
        return None
    join = next(iter(last.users))
    if join.op != "call_module" or not isinstance(view.get_submodule(str(join.target)), Add):
        return None
    others = [source for source in join.args if source is not last]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or depends_on(others[0], node):
        return None
    return join, others[0]


def _pairs(
    whole: Stream,
    small: Stream,
    node: fx.Node,
    kept: Tensor,
    norm_name: str,
    join: tuple[fx.Node, fx.Node] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The layer's input in the cut network, and its target ``[n, C_out kept, ...]``, batch by batch."""
    source = node.all_input_nodes[0]
    dim = -1 if isinstance(whole.view.get_submodule(str(node.target)), nn.Linear) else 1
    norm: Any = whole.view.get_submodule(norm_name) if norm_name else None
    if join is None:
        own = whole.nodes[node.name]
        for (value,), (seen,) in zip(whole.values([own]), small.values([source]), strict=True):
            yield seen, value.index_select(dim, kept.to(value.device))
        return
    total = whole.nodes[join[0].name]
    for (value,), (seen, other) in zip(whole.values([total]), small.values([source, join[1]]), strict=True):
        wanted = value.index_select(dim, kept.to(value.device)) - other
        yield seen, wanted if norm is None else _before_norm(wanted, norm, kept.to(value.device))


def _before_norm(value: Tensor, norm: Any, kept: Tensor) -> Tensor:
    """The input for which a BatchNorm in evaluation mode returns ``value``; its mean where the scale is zero."""
    shape = (1, -1, *([1] * (value.dim() - 2)))
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_mean)
    scale, shift, mean = scale[kept], shift[kept], norm.running_mean[kept]
    usable = scale.abs() > 1e-6
    inverse = torch.where(usable, 1 / torch.where(usable, scale, torch.ones_like(scale)), torch.zeros_like(scale))
    result: Tensor = (value - shift.view(shape)) * inverse.view(shape) + mean.view(shape)
    return result


def _write(
    root: nn.Module,
    name: str,
    weight: Tensor,
    constant: Tensor,
    norm_name: str,
    whole: fx.GraphModule,
    kept: Tensor,
) -> None:
    """Write a fitted weight into its layer, and the constant into its bias or the mean of the BatchNorm behind it."""
    layer: Any = root.get_submodule(name)
    if isinstance(layer, Constant):
        device = layer.bias.device
    else:
        device = layer.weight.device
        layer.weight.copy_(weight)
    constant = constant.to(device)
    if norm_name:
        norm: Any = root.get_submodule(norm_name)
        source: Any = whole.get_submodule(norm_name)
        mean = source.running_mean.to(device)[kept.to(device)]
        if layer.bias is None:
            norm.running_mean.copy_(mean - constant)
            return
        norm.running_mean.copy_(mean)
    if layer.bias is None:
        layer.register_parameter("bias", nn.Parameter(constant.clone()))
    else:
        layer.bias.copy_(constant)
