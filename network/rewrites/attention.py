"""``nn.MultiheadAttention`` as its parts: projections to queries, keys and values, attention by head, output projection."""

import math
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .edits import call, erase_unread


def open_attention(view: fx.GraphModule) -> list[str]:
    """Replace every ``nn.MultiheadAttention`` without masks whose weights nobody reads; a note for each."""
    notes = []
    for node in list(view.graph.nodes):
        if node.op != "call_module":
            continue
        module = view.get_submodule(str(node.target))
        if type(module) is nn.MultiheadAttention and _is_plain(module, node):
            _open(view, node, module)
            notes.append(f"{node.target}: attention as its projections and heads")
    return notes


def _is_plain(module: nn.MultiheadAttention, node: fx.Node) -> bool:
    masks = [*node.args[3:4], *node.args[5:], *(node.kwargs.get(name) for name in ("key_padding_mask", "attn_mask"))]
    reads_weights = any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users if user.users)
    return (
        module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
        and not module.dropout
        and len(node.args) >= 3
        and all(mask is None for mask in masks)
        and not node.kwargs.get("is_causal")
        and not reads_weights
    )


def _open(view: fx.GraphModule, node: fx.Node, module: nn.MultiheadAttention) -> None:
    name, width = str(node.target), module.embed_dim // module.num_heads
    parts = nn.Module()
    weights: Any = module.in_proj_weight.detach().chunk(3)
    biases = module.in_proj_bias.detach().chunk(3) if module.in_proj_bias is not None else (None,) * 3
    for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        layer = nn.Linear(module.embed_dim, module.embed_dim, bias is not None)
        layer.weight = nn.Parameter(weight.clone())
        if bias is not None:
            layer.bias = nn.Parameter(bias.clone())
        parts.add_module(part, layer)
    output = nn.Linear(module.embed_dim, module.embed_dim, module.out_proj.bias is not None)
    output.load_state_dict(module.out_proj.state_dict())
    parts.add_module("out_proj", output)
    view.set_submodule(name, parts.eval())
    heads = []
    for part, source in zip(("query", "key", "value"), node.args[:3], strict=True):
        if not module.batch_first:
            source = call(view, node, torch.transpose, (source, 0, 1))
        projected = call(view, node, f"{name}.{part}", (source,))
        split = call(view, node, "unflatten", (projected, -1, (-1, width)))
        heads.append(call(view, node, torch.transpose, (split, 1, 2)))
    mixed = call(view, node, F.scaled_dot_product_attention, tuple(heads), scale=1 / math.sqrt(width))
    joined = call(view, node, torch.flatten, (call(view, node, torch.transpose, (mixed, 1, 2)), 2))
    result = call(view, node, f"{name}.out_proj", (joined,))
    if not module.batch_first:
        result = call(view, node, torch.transpose, (result, 0, 1))
    for user in list(node.users):
        user.replace_all_uses_with(result)
        erase_unread(view, user)
    erase_unread(view, node)
