"""Fits of the layers behind a cut: which layers are fitted, to what, and how the solutions are written into the network.

Inputs come from the network as cut and fitted so far, targets from the original. Where a layer feeds a residual join, its
target is the original's value at the join minus the other branch in the cut network, so that errors do not accumulate along the
stream.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...common.progress import Progress, silent
from ...network.channels.cut import Cut
from ...network.graph.leaf_modules import Add
from ...network.graph.pass_through import passes
from ...network.graph.reach import depends_on
from ...network.graph.stand_ins import Constant
from .activations import Stream
from .least_squares import Problem, ReconstructionSettings, can_fit


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


def layers_behind(view: fx.GraphModule, cut: Cut) -> list[fx.Node]:
    """The nodes to fit, in network order: layers that lost inputs, and layers whose inputs are no longer the original's."""
    modules = dict(view.named_modules())
    calls = Counter(node.target for node in view.graph.nodes if node.op == "call_module")
    changed: set[fx.Node] = set()
    wanted = []
    for node in view.graph.nodes:
        lost = node.op == "call_module" and node.target in cut and bool(cut[node.target].in_removed)
        if lost or any(source in changed for source in node.all_input_nodes):
            changed.add(node)
            if node.op == "call_module" and calls[node.target] == 1 and can_fit(modules[node.target]):
                wanted.append(node)
    return wanted


def fit_layers(
    whole: Stream,
    small: Stream,
    wanted: Sequence[fx.Node],
    cut: Cut,
    settings: ReconstructionSettings,
    module: nn.Module | None = None,
    progress: Progress = silent,
) -> tuple[LayerFit, ...]:
    """Fit layers of the cut network in network order, each on what the fits before it leave. Call without gradients.

    Args:
        whole: the original network on the images; nodes have the same names in both networks.
        small: the cut network on the same images; fits are written into its view.
        wanted: nodes of ``small``, in network order.
        module: another network that the fits are written into.
    """
    roots = (small.view,) if module is None else (small.view, module)
    fits = []
    for node in wanted:
        whole.advance(whole.nodes[node.name])
        small.advance(node)
        fits.append(_fit(whole, small, node, roots, cut, settings))
        progress(len(fits), len(wanted))
    return tuple(fits)


def _fit(
    whole: Stream,
    small: Stream,
    node: fx.Node,
    roots: Sequence[nn.Module],
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
    norm_name = norm_behind(small.view, node)
    join = join_behind(small, node)
    problem = Problem(layer, settings)
    for index, (seen, target) in enumerate(_pairs(whole, small, node, kept, norm_name, join)):
        problem.add(seen, target, index)
    weight, constant, fit = problem.solve()
    for root in roots:
        _write(root, name, weight, constant, norm_name, whole.view, kept)
    return LayerFit(name, fit[0], fit[1], fit[2], fit[3], join is not None)


def norm_behind(view: fx.GraphModule, node: fx.Node) -> str:
    """The BatchNorm that alone reads a layer's output, by name; empty if there is none."""
    if len(node.users) != 1:
        return ""
    reader = next(iter(node.users))
    if reader.op != "call_module":
        return ""
    norm = view.get_submodule(str(reader.target))
    return str(reader.target) if isinstance(norm, _BatchNorm) and norm.running_mean is not None else ""


def join_behind(small: Stream, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(the sum that a layer feeds, directly or through its norm; the other branch), if the other does not depend on it.

    None also where the layer is broadcast over the other branch's positions or channels.
    """
    view = small.view
    last = next(iter(node.users)) if norm_behind(view, node) else node
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
    if any(small.shapes.get(part) != small.shapes[node] for part in (join, others[0])):
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
