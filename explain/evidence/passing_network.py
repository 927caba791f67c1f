"""Run a copy of a network in which gradients show every possible dependence, whatever the weights."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

from ...network.graph.execution import run_node
from ...network.graph.leaf_modules import Add, Multiply
from ...network.graph.reach import needed_for
from ...network.graph.shapes import is_shape
from ...network.graph.stand_ins import Constant
from ...network.graph.trace import PER_CHANNEL

_ELEMENTWISE_MODULES = (
    *(*PER_CHANNEL, _DropoutNd, Add, Multiply),
    *(nn.SELU, nn.CELU, nn.Softsign, nn.LogSigmoid, nn.RReLU, nn.Threshold),
    *(nn.Hardshrink, nn.Softshrink, nn.Tanhshrink),
)
_NAMES = """add iadd sub isub subtract rsub mul imul multiply div itruediv divide truediv true_divide pow neg negative
    reciprocal addcmul addcdiv lerp where masked_fill maximum minimum fmax fmin atan2 hypot fmod remainder
    gt lt ge le eq ne greater less greater_equal less_equal not_equal and or xor logical_and logical_or logical_xor logical_not
    invert abs absolute sign sgn exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square sin cos tan asin acos atan sinh cosh tanh
    erf sigmoid round floor ceil trunc frac heaviside nan_to_num clamp clip clamp_min clamp_max detach
    relu relu6 leaky_relu rrelu elu selu celu gelu silu mish softplus softsign logsigmoid threshold tanhshrink
    hardtanh hardswish hardsigmoid hardshrink softshrink"""
_ELEMENTWISE = frozenset(
    _NAMES.split()
)  # functions, methods and operators, without the trailing underscore of in-place forms
_UNCHANGED = frozenset(("prelu", "batch_norm", "dropout", "dropout2d", "alpha_dropout", "feature_dropout"))
_CASTS = frozenset(("to", "type", "type_as", "float", "double", "half", "bfloat16"))
_REDUCTIONS = frozenset(("max", "min", "amax", "amin", "std", "var"))
# The position of ``dim`` among the arguments.
_MIXED_ALONG = {"softmax": 1, "softmin": 1, "log_softmax": 1, "normalize": 2}
_CHOICES = """sort msort topk kthvalue median nanmedian quantile mode cummax cummin
    max_pool1d max_pool3d fractional_max_pool2d adaptive_max_pool1d adaptive_max_pool3d"""
_CHOOSING = frozenset(_CHOICES.split())  # their gradient reaches only the elements that were selected
_CHOOSING_MODULES = (nn.MaxPool1d, nn.MaxPool3d, nn.FractionalMaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool3d)


class NoGradientError(Exception):
    """An operation of the network has no gradient that shows what its result depends on."""


class PassingNetwork:
    """A copy of a traced network that passes every gradient; the network itself is unchanged.

    In the copy, float64 on the CPU, weights are random and positive. Activations, clamps and normalisations by stored
    statistics become the identity; products and other element-wise operations on several tensors become their mean; maxima
    become means or sums of their inputs; normalisations over positions or channels become the mean of the input and of
    everything they normalise by. Thus no gradient is zero because of saturation, cancellation or a maximum elsewhere, and
    values stay near one.
    """

    def __init__(self, view: fx.GraphModule) -> None:
        self._network = copy.deepcopy(view).cpu().double().eval()
        self._copies = dict(zip(view.graph.nodes, self._network.graph.nodes, strict=True))
        generator = torch.Generator().manual_seed(0)
        for parameter in self._network.parameters():
            parameter.requires_grad_(False)
            if parameter.dim() > 1:  # about one over the number of summands
                parameter.uniform_(0.5, 1.5, generator=generator).div_(parameter[0].numel())
            else:
                parameter.fill_(1.0)

    def run(self, node: fx.Node, image: Tensor) -> Tensor:
        """The output of a node for an image.

        Args:
            image: positive, ``[1, C, H, W]``, float64, with respect to which gradients are computed.

        Raises:
            NoGradientError: an operation before the node passes no gradient (``argmax``), or cannot run in this copy.
        """
        wanted = self._copies[node]
        needed = needed_for([wanted])
        values: dict[fx.Node, Any] = {}
        for each in self._network.graph.nodes:
            if each not in needed:
                continue
            try:
                values[each] = image if each.op == "placeholder" else _near_one(_value(self._network, each, values))
            except NoGradientError:
                raise
            except Exception as error:  # a user's operation may expect other values, or another type
                raise NoGradientError(f"{each.name}: {error}") from error
        result: Tensor = values[wanted]
        return result


def _value(network: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    arguments = fx.node.map_arg(node.args, values.__getitem__)
    options = fx.node.map_arg(node.kwargs, values.__getitem__)
    run = partial(run_node, network, node, values.__getitem__)
    if not _followed(arguments, options):
        return run()
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        value = _of_module(module, arguments, run)
        constant = isinstance(module, Constant)
    else:
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        value = _of_call(name.rstrip("_"), arguments, options, run)
        constant = is_shape(node) or name.endswith("_like") or name.startswith("new_")
    numeric = any(isinstance(leaf, Tensor | float) for leaf in tree_leaves(value))
    if numeric and not constant and not _followed(value):
        raise NoGradientError(f"{node.name} passes no gradient")
    return value


def _of_module(module: nn.Module, arguments: Sequence[Any], run: Callable[[], Any]) -> Any:
    x = arguments[0]
    if isinstance(module, _ELEMENTWISE_MODULES):
        return _joined(arguments)
    if isinstance(module, nn.MaxPool2d):
        return _summed(module, x, run)
    if isinstance(module, nn.AdaptiveMaxPool2d):
        return _like(run(), F.adaptive_avg_pool2d(x, module.output_size))
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return _mixed(x, tuple(range(-len(module.normalized_shape), 0)))
    if isinstance(module, nn.GroupNorm):
        return _mixed_in_groups(x, module.num_groups)
    if isinstance(module, _InstanceNorm):
        return x if module.track_running_stats else _mixed(x, tuple(range(2, x.dim())))
    if isinstance(module, nn.Softmax | nn.Softmin | nn.LogSoftmax):
        return _mixed(x, 1 if module.dim is None else module.dim)
    if isinstance(module, nn.Softmax2d):
        return _mixed(x, -3)
    if isinstance(module, _CHOOSING_MODULES):
        raise NoGradientError(type(module).__name__)
    return run()


def _of_call(name: str, arguments: Sequence[Any], options: Mapping[str, Any], run: Callable[[], Any]) -> Any:
    x: Any = arguments[0] if arguments else options.get("input")
    name = name.removesuffix("_with_indices")
    if name in _ELEMENTWISE:
        return _joined([*arguments, *options.values()])
    if name in _UNCHANGED or name in _CASTS:  # all stays float64
        return x
    if name in _REDUCTIONS:
        second = arguments[1] if len(arguments) > 1 else options.get("other")
        return _joined([x, second]) if isinstance(second, Tensor) else _averaged(x, second, options, run)
    if name in _MIXED_ALONG:
        place = _MIXED_ALONG[name]
        dim = arguments[place] if len(arguments) > place else options.get("dim")
        return _mixed(x, 1 if dim is None else dim)
    if name in ("layer_norm", "rms_norm"):
        shape = arguments[1] if len(arguments) > 1 else options["normalized_shape"]
        return _mixed(x, tuple(range(-len(shape), 0)))
    if name == "group_norm":
        return _mixed_in_groups(x, arguments[1] if len(arguments) > 1 else options["num_groups"])
    if name == "instance_norm":
        return _mixed(x, tuple(range(2, x.dim())))
    if name == "max_pool2d":
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        chosen = dict(zip(names, arguments[1:], strict=False)) | {key: options[key] for key in names if key in options}
        return _summed(nn.MaxPool2d(**chosen), x, run)
    if name == "adaptive_max_pool2d":
        return _like(run(), F.adaptive_avg_pool2d(x, arguments[1] if len(arguments) > 1 else options["output_size"]))
    if name in _CHOOSING:
        raise NoGradientError(name)
    return run()


def _followed(*values: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(values))


def _near_one(value: Any) -> Any:
    """A tensor scaled so that its mean is within a factor of ten of one."""
    if not (isinstance(value, Tensor) and value.requires_grad):
        return value
    size = float(value.detach().abs().mean())
    return value if 0.1 < size < 10 or size == 0 else value / size


def _joined(values: Sequence[Any]) -> Tensor:
    """The mean of all tensors among the values, broadcast to one shape."""
    tensors = [value.double() for value in values if isinstance(value, Tensor)]
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)


def _mixed(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    return (x + x.mean(dims, keepdim=True)) / 2


def _mixed_in_groups(x: Tensor, groups: int) -> Tensor:
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    return _mixed(grouped, tuple(range(2, grouped.dim()))).flatten(1, 2)


def _averaged(x: Tensor, dim: Any, options: Mapping[str, Any], run: Callable[[], Any]) -> Any:
    """The mean of a reduction's input, in the form of its output: ``max`` along one dimension also returns indices."""
    given = run()
    dim = options.get("dim", None if isinstance(dim, bool) else dim)  # std(True) is the older form of unbiased=True
    if dim is None or dim == ():
        dim = tuple(range(x.dim()))
    values = given if isinstance(given, Tensor) else given[0]
    return _like(given, x.mean(dim, keepdim=values.dim() == x.dim()))


def _summed(pool: nn.MaxPool2d, x: Tensor, run: Callable[[], Any]) -> Any:
    """The sum over a pool's windows, of the pool's output size."""
    given = run()
    height, width = (given if isinstance(given, Tensor) else given[0]).shape[-2:]
    (down, right), (above, left) = _pair(pool.stride), _pair(pool.padding)
    maps = x if x.dim() == 4 else x.unsqueeze(0)
    padded = F.pad(
        maps, (left, left + right, above, above + down)
    )  # windows that extend beyond the edge with ceil_mode
    window = torch.ones(maps.shape[1], 1, *_pair(pool.kernel_size), dtype=x.dtype)
    sums = F.conv2d(padded, window, stride=(down, right), dilation=_pair(pool.dilation), groups=maps.shape[1])
    sums = sums[:, :, :height, :width]
    return _like(given, sums if x.dim() == 4 else sums[0])


def _like(given: Any, values: Tensor) -> Any:
    """``values`` in the form of the original output: alone, or followed by indices."""
    if isinstance(given, Tensor):
        return values
    parts = (values, *given[1:])
    return parts if type(given) is tuple else type(given)(parts)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])
