"""Traced networks written so that captum attributes rightly on them.

captum looks at modules and at the gradients of the tensors they take and give. Its DeepLIFT treats a nonlinearity that is not
in its table as if it were linear, and loses what pooling windows that overlap share; its LRP knows few modules, mixes relevance
with gradients where branches of several kinds read one tensor, and cannot tell the relevance at an activation. The views here
leave the values of the network as they are, and give captum modules for which its arithmetic holds.
"""

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules import batchnorm, dropout, padding, pooling
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...common.errors import InputError
from ...network.graph.execution import image_dependent
from ...network.graph.leaf_modules import Add, Concatenate, Multiply, ZeroPadChannels
from ...network.graph.stand_ins import Constant, Subsample
from ...network.graph.trace import ACTIVATIONS, reading_nodes, trace
from ...network.hooks import pick_logits, reading_activations
from ...network.network import Network
from .multipliers import Rescaled, RoutedMaximum, SharedProduct

EPSILON = 1e-6  # of LRP's rule, in units of the pre-activation

MOVES = (  # modules that hand values on, to other places at most
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad2d,
    dropout._DropoutNd,
    Concatenate,
    ZeroPadChannels,
    Subsample,
    Constant,
)
LINEAR = (
    _ConvNd,
    nn.Linear,
    nn.Upsample,
    pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd,
    padding._ReflectionPadNd,
    padding._ReplicationPadNd,
    batchnorm._BatchNorm,
    Add,
)
MAXIMA = (pooling._MaxPoolNd, pooling._AdaptiveMaxPoolNd)
_MOVING_CALLS = (
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.chunk,
    torch.split,
    torch.cat,
    torch.concat,
    torch.stack,
    operator.getitem,
    F.dropout,
    *(
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "contiguous",
        "clone",
    ),
)
_LINEAR_CALLS = (
    *(torch.mean, torch.sum, torch.add, torch.sub, torch.neg, "mean", "sum", "add", "sub", "neg"),
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.neg),
    *(F.interpolate, F.avg_pool2d, F.conv2d, F.linear),
)
_PRODUCTS = (torch.mul, "mul", operator.mul, operator.imul)
_QUOTIENTS = (torch.div, "div", operator.truediv)


class Point(nn.Module):
    """Where a layer's output is read: all its readers read it here."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class _Gather(nn.Module):
    def forward(self, scores: Tensor, *_activations: Tensor) -> Tensor:
        return scores


class GatheredPoints(nn.Module):
    """Class scores ``[n, classes]``; the activations of all points go through one module, ``gather``, behind the scores.

    captum attributes to all inputs of one module in one pass; the first attribution is that of the scores.
    """

    def __init__(self, traced: fx.GraphModule, names: tuple[str, ...]) -> None:
        super().__init__()
        self.traced, self.names, self.gather = traced, names, _Gather()

    def forward(self, images: Tensor) -> Tensor:
        with reading_activations(self.traced, self.names) as read:
            scores = pick_logits(self.traced(images))
        result: Tensor = self.gather(scores, *(read[name][0] for name in self.names))
        return result


class ClassScores(nn.Module):
    """The class scores ``[n, classes]`` in whatever the traced network returns."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, images: Tensor) -> Tensor:
        return pick_logits(self.traced(images))


@dataclass(frozen=True)
class CaptumView:
    """A traced copy of a network in evaluation mode in which every call is a module of its own.

    ``points`` names, for each convolution and linear layer, the :class:`Point` of every call whose output reaches the class
    scores; ``channels`` is each layer's number of kernels, and ``channels_last`` says whether they are the last dimension.
    """

    traced: fx.GraphModule
    points: Mapping[str, tuple[str, ...]]
    channels: Mapping[str, int]
    channels_last: Mapping[str, bool]

    @property
    def names(self) -> tuple[str, ...]:
        """All points, in network order."""
        return tuple(name for names in self.points.values() for name in names)


def make_view(network: Network, device: str = "cpu") -> CaptumView:
    """Trace a network and put a :class:`Point` wherever a layer's output is read.

    Raises:
        InputError: the network's forward cannot be traced.
    """
    traced = trace(network.module, network.example()).eval().to(device)
    points: dict[str, tuple[str, ...]] = {}
    for layer, nodes in reading_nodes(traced).items():
        for node in nodes:
            name = f"secateur_point_{sum(map(len, points.values()))}"
            _insert_after(traced, node, name, Point())
            points[layer] = (*points.get(layer, ()), name)
    _give_every_call_its_module(traced)
    _settle(traced)
    names = [name for every in points.values() for name in every]
    with torch.enable_grad(), reading_activations(traced, names) as read:
        scores = pick_logits(traced(network.example().to(device).requires_grad_()))
        activations = [read[name][0] for name in names]
        gradients = torch.autograd.grad(scores.sum(), activations, allow_unused=True)
    reached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    last = {layer: isinstance(network.module.get_submodule(layer), nn.Linear) for layer in points}
    return CaptumView(
        traced,
        {layer: tuple(name for name in every if name in reached) for layer, every in points.items()},
        {layer: read[every[0]][0].shape[-1 if last[layer] else 1] for layer, every in points.items()},
        last,
    )


def prepare_for_deep_lift(view: CaptumView) -> None:
    """Rewrite the view in place so that captum's DeepLIFT obeys summation-to-delta.

    Nonlinearities that captum does not know get the rescale rule (Shrikumar et al., ICML 2017, section 3.5.1), maxima captum's
    rule with windows that may overlap, products the mean over both orders of change (the Shapley value of two factors).

    Raises:
        InputError: the network does something for which there is no rule.
    """
    known = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
    traced = view.traced
    modules = dict(traced.named_modules())
    for node, kind in _kinds(view, "deep-lift", "integrated-gradients or gap", products=True):
        if kind == "activation" and type(modules[str(node.target)]) in known:
            _own_inputs(traced, node, node.args)
        elif kind == "activation":
            _swap(traced, node, Rescaled(modules[str(node.target)]))
        elif kind == "maximum":
            _swap(traced, node, RoutedMaximum(modules[str(node.target)]))
        elif kind == "product":
            _swap(traced, node, SharedProduct())
    _settle(traced)


def prepare_for_lrp(view: CaptumView) -> Callable[[], None]:
    """Rewrite the view in place for captum's LRP; the function returned lays the rules on the modules before an attribution.

    BatchNorm is folded into the convolution before it. Convolutions, linear layers, sums, averages and maxima have the epsilon
    rule (Bach et al., PLoS ONE 10(7), 2015, eq. 58), a BatchNorm behind none too; activations hand relevance on as it is, and
    what moves values moves relevance.

    Raises:
        InputError: the network does something for which there is no rule.
    """
    from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule

    class Untouched(EpsilonRule):  # type: ignore[misc]
        """For modules through which autograd itself carries relevance rightly."""

        def forward_hook(self, module: Any, inputs: Any, outputs: Any) -> None: ...
        def forward_hook_weights(self, module: Any, inputs: Any, outputs: Any) -> None: ...
        def forward_pre_hook_activations(self, module: Any, inputs: Any) -> None: ...

    traced = view.traced
    _fold_norms(traced)
    modules = dict(traced.named_modules())
    flowing = image_dependent(traced)
    makers: list[tuple[nn.Module, Callable[[], Any]]] = []
    for parameter in traced.parameters():  # captum hooks the outputs of constants as well
        parameter.requires_grad_()
    for node, kind in _kinds(view, "lrp", "deep-lift or gap", products=False):
        if kind == "move":
            continue
        module = modules[str(node.target)] if node.op == "call_module" else _Call(node, flowing)
        if node.op != "call_module":
            node = _swap(traced, node, module)
            flowing.add(node)
        fixed = [source for source in node.args if source not in flowing]
        if fixed and isinstance(module, Add | Multiply):  # captum hooks what is given by position
            node.args, node.kwargs = tuple(s for s in node.args if s in flowing), {"second": fixed[0]}
        _own_inputs(traced, node, node.args)
        if type(module) not in (nn.ReLU, nn.Tanh):  # these captum does itself
            identity = kind in ("activation", "point")
            makers.append((module, IdentityRule if identity else lambda: EpsilonRule(EPSILON)))
    _settle(traced)
    ruled = {module for module, _ in makers}
    leaves = [module for module in traced.modules() if not list(module.children())]
    others = [leaf for leaf in leaves if leaf not in ruled and type(leaf) not in (nn.ReLU, nn.Tanh)]

    def lay_rules() -> None:
        for module, make in [*makers, *((other, Untouched) for other in others)]:
            module.rule = make()

    return lay_rules


class _Call(nn.Module):
    """A function call of a traced network as a module, of the values that depend on the images."""

    def __init__(self, node: fx.Node, flowing: set[fx.Node]) -> None:
        super().__init__()
        self.op, self.call, self.arguments, self.options = node.op, node.target, node.args, node.kwargs
        self.flowing = [source for source in node.all_input_nodes if source in flowing]
        self.fixed = [source for source in node.all_input_nodes if source not in flowing]

    def forward(self, *values: Tensor, **fixed: Any) -> Tensor:
        table = dict(zip(self.flowing, values, strict=True)) | dict(zip(self.fixed, fixed.values(), strict=True))
        arguments: Any = fx.node.map_arg(self.arguments, table.__getitem__)
        options: Any = fx.node.map_arg(self.options, table.__getitem__)
        if callable(self.call):
            result: Tensor = self.call(*arguments, **options)
            return result
        return getattr(arguments[0], self.call)(*arguments[1:], **options)  # type: ignore[no-any-return]


def _kinds(view: CaptumView, method: str, others: str, *, products: bool) -> list[tuple[fx.Node, str]]:
    """What every node through which images flow does: point, move, linear, activation, maximum or product."""
    traced, kinds = view.traced, []
    flowing, modules = image_dependent(traced), dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node not in flowing or node.op in ("placeholder", "output"):
            continue
        if node.op == "call_module":
            module = modules[str(node.target)]
            kind = _kind_of_module(module, sum(source in flowing for source in node.all_input_nodes), products)
            what, where = type(module).__name__, str(node.target)
        else:
            kind = _kind_of_call(node, flowing)
            what, where = str(getattr(node.target, "__name__", node.target)), node.name
        if kind is None:
            raise InputError(f"{method} has no rule for {what} in layer {where}; use {others}.")
        kinds.append((node, kind))
    return kinds


def _kind_of_module(module: nn.Module, flowing_inputs: int, products: bool) -> str | None:
    if isinstance(module, Point):
        return "point"
    if isinstance(module, ACTIVATIONS):
        return "activation"
    if isinstance(module, MAXIMA) and not getattr(module, "return_indices", False):
        return "maximum"
    if isinstance(module, Multiply):
        return "linear" if flowing_inputs == 1 else "product" if products else None
    if isinstance(module, batchnorm._BatchNorm) and module.running_mean is None:
        return None  # it depends on who else is in the batch
    if isinstance(module, LINEAR):
        return "linear"
    return "move" if isinstance(module, MOVES) else None


def _kind_of_call(node: fx.Node, flowing: set[fx.Node]) -> str | None:
    if node.target in _MOVING_CALLS or getattr(node.target, "__name__", "") == "stochastic_depth":
        return "move"
    if node.target in _LINEAR_CALLS:
        return "linear"
    if sum(source in flowing for source in node.args) != 1:
        return None
    scaled = node.target in _PRODUCTS or (node.target in _QUOTIENTS and node.args[0] in flowing)
    return "linear" if scaled else None


def _insert_after(traced: fx.GraphModule, node: fx.Node, name: str, module: nn.Module) -> None:
    traced.add_submodule(name, module)
    with traced.graph.inserting_after(node):
        new = traced.graph.call_module(name, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def _own_inputs(traced: fx.GraphModule, node: fx.Node, sources: tuple[Any, ...]) -> None:
    """Give a node copies of its inputs, that no other node reads: captum's hooks on a tensor are those of one module."""
    for position, source in enumerate(sources):
        with traced.graph.inserting_before(node):
            copied = traced.graph.call_method("clone", (source,))
        node.update_arg(position, copied)


def _swap(traced: fx.GraphModule, node: fx.Node, module: nn.Module) -> fx.Node:
    """Put a module in a node's place."""
    name = f"secateur_swap_{node.name}"
    traced.add_submodule(name, module)
    arguments: tuple[Any, ...] = node.args
    options: dict[str, Any] = {}
    if isinstance(module, _Call):
        arguments = tuple(module.flowing)
        options = {f"fixed_{index}": source for index, source in enumerate(module.fixed)}
    with traced.graph.inserting_after(node):
        new = traced.graph.call_module(name, arguments, options)
    node.replace_all_uses_with(new)
    traced.graph.erase_node(node)
    return new


def _give_every_call_its_module(traced: fx.GraphModule) -> None:
    """Copy the modules called at several places: captum keeps what it saw of a module with the module."""
    called: set[str] = set()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            if node.target in called:
                name = f"secateur_copy_{node.name}"
                traced.add_submodule(name, copy.deepcopy(traced.get_submodule(node.target)))
                node.target = name
            called.add(node.target)


def _fold_norms(traced: fx.GraphModule) -> None:
    """Fold every BatchNorm into the convolution that it alone reads."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        layer = modules[str(source.target)]
        if isinstance(layer, _ConvNd):
            folded = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, _ConvTransposeNd))
            holder, _, leaf = str(source.target).rpartition(".")
            setattr(traced.get_submodule(holder), leaf, folded)
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)


def _settle(traced: fx.GraphModule) -> None:
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
