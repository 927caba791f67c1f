"""A network made plain: the same outputs, from layers and operations whose channels can be followed and cut."""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ...common.errors import InputError
from ..graph.execution import run_graph
from ..graph.leaf_modules import ZeroPadChannels
from ..graph.trace import trace_for_rewrites
from ..graph.tracer import runs_torchs_forward
from ..hooks import frozen, pick_logits
from ..provenance.labelling import label_channels
from .attention import open_attention
from .edits import erase_unread
from .gathers import select_channels
from .layers import fold_constants, layers_from_functions
from .means import means_over_channels
from .sizes import free_sizes

SHOWN = 12
"""How many rewrites a summary names."""
_MARK = "_secateur_plain"
TOLERANCE = 1e-5
"""The most that class scores may change, in units of their largest."""


@dataclass(frozen=True)
class Plain:
    """A network made plain, and a note for every rewrite. Without one, ``module`` is the user's own."""

    module: nn.Module
    notes: tuple[str, ...] = ()

    def summary(self) -> tuple[str, ...]:
        """The notes as one, of at most a few rewrites of each kind."""
        if not self.notes:
            return ()
        shown, rest = self.notes[:SHOWN], len(self.notes) - SHOWN
        more = f"; and {rest} more" if rest > 0 else ""
        return (
            f"The network was rewritten so that its channels can be followed, with equal outputs: {'; '.join(shown)}{more}.",
        )


def make_plain(module: nn.Module, example: Tensor) -> Plain:
    """Rewrite what hides channels from secateur; the original is unchanged.

    A network that needs no rewrite, that cannot be traced, or whose class scores would change is returned as it is. Otherwise
    it is a graph of torch's own layers, under the names that they had, whose class scores equal the original's.

    Args:
        example: ``[n, C, H, W]``.
    """
    if is_plain(module):
        return Plain(module)
    try:
        view, guards, depends = trace_for_rewrites(module, example[:1])
    except InputError:
        return Plain(module)
    view.eval()
    needed = depends or bool(guards) or any(isinstance(child, ZeroPadChannels) for child in view.modules())
    needed = needed or _makes_constants(view, module)
    odd = [name for name, child in module.named_modules() if not runs_torchs_forward(child)]
    notes = [f"forward decides on values: {guard} for noise images, and that branch is kept" for guard in guards]
    notes += open_attention(view)
    notes += layers_from_functions(view, _values(view, example))
    notes += fold_constants(view)
    _settle(view, example)
    notes += select_channels(view, label_channels(view, example, whole=False))
    _settle(view, example)
    labelling = label_channels(view, example)
    means = means_over_channels(view, labelling)
    if means:
        _settle(view, example)
        labelling = label_channels(view, example)
    notes += [*means, *free_sizes(view, labelling)]
    unused = _drop_unused(view, module)
    if unused:
        notes.append(f"{', '.join(unused)}: left out, since the class scores do not depend on it")
    if not (notes or needed or odd):
        return Plain(mark(module))
    _settle(view, example)
    if _differs(module, view, example):
        return Plain(mark(module))
    view.train(module.training)
    return Plain(mark(view), tuple(notes))


def is_plain(module: nn.Module) -> bool:
    """Whether a module was made plain, or needs no rewrite."""
    return bool(module.meta.get(_MARK) if isinstance(module, fx.GraphModule) else getattr(module, _MARK, False))


def mark(module: nn.Module) -> nn.Module:
    """Remember that a module needs no rewrite."""
    if isinstance(module, fx.GraphModule):  # its copies keep nothing else
        module.meta[_MARK] = True
    else:
        object.__setattr__(module, _MARK, True)
    return module


def _makes_constants(view: fx.GraphModule, module: nn.Module) -> bool:
    """Whether the graph reads tensors that the network does not hold, which ``forward`` made while it was traced."""
    own = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    return any(node.op == "get_attr" and str(node.target) not in own for node in view.graph.nodes)


def _values(view: fx.GraphModule, example: Tensor) -> dict[fx.Node, Any]:
    with torch.no_grad():
        return dict(run_graph(view, example[:1], [node for node in view.graph.nodes if node.op != "output"]))


def _settle(view: fx.GraphModule, example: Tensor) -> None:
    view.graph.lint()
    view.recompile()
    with torch.no_grad():
        view.eval()(example[:1])


def _drop_unused(view: fx.GraphModule, module: nn.Module) -> list[str]:
    """Remove modules that the graph does not call; the names of those of the user's that had weights."""
    for node in reversed(list(view.graph.nodes)):
        if not node._erased:
            erase_unread(view, node)
    view.delete_all_unused_submodules()
    kept = {name for name, _ in view.named_modules()}
    layers = [name for name, child in module.named_modules() if isinstance(child, _ConvNd | nn.Linear)]
    lost = [name for name in layers if not any(name == other or other.startswith(f"{name}.") for other in kept)]
    inside_attention = [name for name, child in module.named_modules() if isinstance(child, nn.MultiheadAttention)]
    return sorted(
        {name.split(".")[0] for name in lost if not any(name.startswith(f"{each}.") for each in inside_attention)}
    )


def _differs(module: nn.Module, view: nn.Module, example: Tensor) -> bool:
    """Whether outputs differ in two batch sizes, as they may where ``forward`` decides on values or on the number of images."""
    generator = torch.Generator().manual_seed(1)
    with frozen(module), frozen(view), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        for count in (1, 3):
            images = torch.randn(count, *example.shape[1:], generator=generator).to(example)
            expected = pick_logits(module(images))
            try:
                found = pick_logits(view(images))
            except Exception:  # a graph that was traced for other images may fail anywhere
                return True
            scale = 1 + float(expected.abs().max())
            if expected.shape != found.shape or float((expected - found).abs().max()) > TOLERANCE * scale:
                return True
    return False
