"""Guided backpropagation (Springenberg et al., ICLR 2015 workshop): which pixels excite a decision.

The gradient of the decision with respect to the pixels, except that the backward pass sets negative gradients at the output of
an activation to zero, so that only excitatory contributions are propagated. A ReLU also blocks the gradient of negative inputs,
as usual. In a traced network every activation is a separate module, so functional and reused activations are included.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ...common.errors import InputError
from ...network.graph.execution import is_image_map, output_node, run_graph
from ...network.graph.trace import ACTIVATIONS
from ...network.hooks import frozen, pick_logits


@dataclass(frozen=True)
class KernelDecisions:
    """Decisions ``F[k, y, x]`` of a feature map: the outputs of kernels at positions, for images. All four int64
    ``[decisions]``.
    """

    node: fx.Node
    images: Tensor
    kernels: Tensor
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class ClassDecisions:
    """Decisions that are class scores before the softmax, by image and class. Both int64 ``[decisions]``."""

    images: Tensor
    labels: Tensor


def guided_backpropagation(
    view: fx.GraphModule, images: Tensor, decisions: KernelDecisions | ClassDecisions, *, batch_size: int = 64
) -> Tensor:
    """Guided gradients of decisions with respect to normalised images ``[n, C, H, W]``: ``[decisions, C, H, W]``.

    ``view`` is the result of ``trace``, on the images' device; it is unchanged. ReLU is treated as in the paper. Every other
    activation that is a module in the traced network (ReLU6, SiLU, GELU, Hardswish, a gate's sigmoid, …) multiplies the
    positive part of the incoming gradient by its own derivative. Activations that stay functions (``clamp``) use the plain
    gradient.

    Raises:
        InputError: an image, kernel, position or class does not exist, or the decision does not depend on the pixels.
    """
    if not len(decisions.images):
        return torch.zeros(0, *images.shape[1:], device=images.device)
    _check(decisions.images, len(images), "image", "given")
    node = decisions.node if isinstance(decisions, KernelDecisions) else output_node(view)
    gradients = []
    with frozen(view), _guiding(view), torch.enable_grad():
        for start in range(0, len(decisions.images), batch_size):
            part = slice(start, start + batch_size)
            rows = decisions.images[part].to(images.device)
            pixels = images.detach().index_select(0, rows).requires_grad_()
            chosen = _pick(run_graph(view, pixels, [node])[node], decisions, part)
            (gradient,) = torch.autograd.grad(chosen.sum(), pixels)
            gradients.append(gradient)
    return torch.cat(gradients)


def _pick(value: object, decisions: KernelDecisions | ClassDecisions, part: slice) -> Tensor:
    """The decisions with indices ``part``, one for each row of the node's output."""
    if isinstance(decisions, ClassDecisions):
        table, where = pick_logits(value), "of the class scores"
        chosen = {"class": decisions.labels}
    else:
        if not isinstance(value, Tensor) or not is_image_map(value):
            raise InputError(f"{decisions.node.name} gives no feature map. Name a convolution or a block.")
        table, where = value, f"of {decisions.node.name}"
        chosen = {"kernel": decisions.kernels, "row": decisions.rows, "column": decisions.columns}
    if not table.requires_grad:
        raise InputError(f"The decision {where} does not depend on the pixels. Choose another layer.")
    index = [torch.arange(len(decisions.images[part]), device=table.device)]
    for size, (what, indices) in zip(table.shape[1:], chosen.items(), strict=True):
        _check(indices[part], size, what, where)
        index.append(indices[part].to(table.device))
    return table[tuple(index)]


def _check(indices: Tensor, size: int, what: str, where: str) -> None:
    outside = indices[(indices < 0) | (indices >= size)]
    if len(outside):
        raise InputError(f"There is no {what} {int(outside[0])} {where}: they count from 0 to {size - 1}.")


@contextlib.contextmanager
def _guiding(view: fx.GraphModule) -> Iterator[None]:
    """Inside this context, no negative gradient passes an activation of the traced network."""

    def stop_negative(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient.clamp(min=0))  # type: ignore[no-untyped-call]

    with contextlib.ExitStack() as stack:
        for module in view.modules():
            if isinstance(module, ACTIVATIONS):
                stack.callback(module.register_forward_hook(stop_negative).remove)
        yield
