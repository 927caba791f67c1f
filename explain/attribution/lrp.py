"""Layer-wise relevance propagation (Bach et al., PLoS ONE 10(7), 2015) by captum, with the epsilon rule for every network."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules import batchnorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...network.graph.execution import image_dependent
from ...network.graph.leaf_modules import Add, Multiply
from .graph_views import Attribute, CaptumView, ClassScores, own_inputs, settle, swap
from .node_kinds import node_kinds

EPSILON = 1e-6
"""The epsilon of the rule, in units of the pre-activation."""


def prepare_lrp(view: CaptumView, rows: int) -> Attribute:
    """Relevance of the class logits at all points (Bach et al. 2015, eq. 58)."""
    from captum.attr import LayerLRP

    lay_rules = prepare_for_lrp(view)
    module = ClassScores(view.traced)
    points: list[Any] = [view.traced.get_submodule(name) for name in view.names]

    def run(images: Tensor, labels: Tensor) -> list[Tensor]:
        lay_rules()
        return list(LayerLRP(module, points).attribute(images, target=labels))

    return run


def prepare_for_lrp(view: CaptumView) -> Callable[[], None]:
    """Rewrite the view in place for captum's LRP; the returned function sets the modules' rules before an attribution.

    BatchNorm is folded into the convolution before it. Convolutions, linear layers, sums, averages, maxima and a BatchNorm
    without such a convolution have the epsilon rule (Bach et al., PLoS ONE 10(7), 2015, eq. 58). Activations pass relevance on
    unchanged, and operations that move values move relevance.

    Raises:
        InputError: there is no rule for an operation of the network.
    """
    from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule

    class Untouched(EpsilonRule):  # type: ignore[misc]
        """For modules whose gradient already propagates relevance correctly."""

        def forward_hook(self, module: Any, inputs: Any, outputs: Any) -> None: ...
        def forward_hook_weights(self, module: Any, inputs: Any, outputs: Any) -> None: ...
        def forward_pre_hook_activations(self, module: Any, inputs: Any) -> None: ...

    traced = view.traced
    _fold_norms(traced)
    modules = dict(traced.named_modules())
    flowing = image_dependent(traced)
    makers: list[tuple[nn.Module, Callable[[], Any]]] = []
    for parameter in traced.parameters():  # captum also hooks the outputs of constants
        parameter.requires_grad_()
    for node, kind in node_kinds(traced, "lrp", "deep-lift or gap", products=False):
        if kind == "move":
            continue
        if node.op == "call_module":
            module = modules[str(node.target)]
        else:
            module = call = _Call(node, flowing)
            node = swap(traced, node, call, tuple(call.flowing), {f"fixed_{i}": s for i, s in enumerate(call.fixed)})
            flowing.add(node)
        fixed = [source for source in node.args if source not in flowing]
        if fixed and isinstance(module, Add | Multiply):  # captum hooks positional arguments only
            node.args, node.kwargs = tuple(s for s in node.args if s in flowing), {"second": fixed[0]}
        own_inputs(traced, node, node.args)
        if type(module) not in (nn.ReLU, nn.Tanh):  # captum has rules for these
            identity = kind in ("activation", "point")
            makers.append((module, IdentityRule if identity else lambda: EpsilonRule(EPSILON)))
    settle(traced)
    ruled = {module for module, _ in makers}
    leaves = [module for module in traced.modules() if not list(module.children())]
    others = [leaf for leaf in leaves if leaf not in ruled and type(leaf) not in (nn.ReLU, nn.Tanh)]

    def lay_rules() -> None:
        for module, make in [*makers, *((other, Untouched) for other in others)]:
            module.rule = make()

    return lay_rules


class _Call(nn.Module):
    """A function call of a traced network as a module of the values that depend on the images."""

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
