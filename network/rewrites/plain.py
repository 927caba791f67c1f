"""A network made plain: the same outputs, from layers and operations whose channels can be followed and cut."""

import contextlib
import copy
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ...common.errors import InputError, describe
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
TOLERANCE = 1e-6
"""The most that class scores may change, in units of 1 plus the largest."""


@dataclass(frozen=True)
class Plain:
    """A network made plain, and a note for every rewrite. Without one, ``module`` is the user's own.

    ``refused`` says why the user's module stays although it would need a rewrite.
    """

    module: nn.Module
    notes: tuple[str, ...] = ()
    refused: str = ""

    def summary(self) -> tuple[str, ...]:
        """The notes as one, which names the first rewrites."""
        if self.refused:
            return (f"The network stays as it is, though parts of it hide channels: {self.refused}.",)
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
    try:
        notes, needed = _rewrite(view.eval(), module, example)
    except Exception as error:  # operations of the user's run on other values than they were written for
        return Plain(mark(module), refused=f"rewriting fails ({describe(error)})")
    guarded = [f"forward decides on values: {guard} for noise images, and that branch is kept" for guard in guards]
    if not (needed or depends or guarded):
        return Plain(mark(module))
    if difference := _difference(module, view, example):
        return Plain(mark(module), refused=difference)
    view.train(module.training)
    return Plain(mark(view), (*guarded, *notes))


def _rewrite(view: fx.GraphModule, module: nn.Module, example: Tensor) -> tuple[list[str], bool]:
    """Rewrite a traced network in place; the notes, and whether anything differs from the user's module."""
    needed = any(isinstance(child, ZeroPadChannels) for child in view.modules()) or _makes_constants(view, module)
    notes = open_attention(view)
    notes += layers_from_functions(view, _values(view, example))
    notes += fold_constants(view)
    _settle(view, example)
    notes += select_channels(view, label_channels(view, example, whole=False))
    _settle(view, example)
    labelling = label_channels(view, example)
    if means := means_over_channels(view, labelling):
        _settle(view, example)
        labelling = label_channels(view, example)
    notes += [*means, *free_sizes(view, labelling)]
    if unused := _drop_unused(view, module):
        notes.append(f"{', '.join(unused)}: left out, since the class scores do not depend on it")
    _settle(view, example)
    odd = any(not runs_torchs_forward(child) for child in module.modules())
    return notes, bool(notes) or needed or odd


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
    attention = [f"{name}." for name, child in module.named_modules() if isinstance(child, nn.MultiheadAttention)]
    lost = [
        name
        for name, child in module.named_modules()
        if isinstance(child, _ConvNd | nn.Linear)
        and not any(name == other or other.startswith(f"{name}.") for other in kept)
        and not name.startswith(tuple(attention))
    ]
    return list(dict.fromkeys(_outermost(name, kept) for name in lost))


def _outermost(name: str, kept: set[str]) -> str:
    """The largest block around a layer of which nothing is kept."""
    parts = name.split(".")
    blocks = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((block for block in blocks if block not in kept), name)


def _difference(module: nn.Module, view: nn.Module, example: Tensor) -> str:
    """How class scores differ, as they may where ``forward`` decides on values; an empty string if they agree.

    Where float32 rounds by more than the tolerance, float64 decides.
    """
    if not _differs(module, view, example):
        return ""
    try:
        if not _differs(copy.deepcopy(module).double(), copy.deepcopy(view).double(), example.double()):
            return ""
    except Exception:  # a user's forward may know float32 only
        return "its class scores would change by rounding"
    return "its class scores would change, since forward depends on more than the images' shape"


def _differs(module: nn.Module, view: nn.Module, example: Tensor) -> bool:
    """Whether class scores differ for one or for three images."""
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
